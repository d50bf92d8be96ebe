-- Returns a failure of a SQL target as its applier has to judge it, if it looks like an outage of something that
-- commands need, rather than the command's fault; otherwise NULL. Internal to the appliers. Takes no locks.
--
-- It does by its SQLSTATE: no connection (08, and HV00N of foreign data wrappers), or another server that shuts down,
-- starts or has crashed (57P0), as postgres_fdw and dblink pass that on; what such an error is about here ends the
-- session. So does a server, this one or another, whose disk is full, whose memory or connections are used up, or whose
-- disk fails (53, 58); not a limit that is set for what a command takes (53400).
-- Extensions and languages that have no SQLSTATE for that (XX000, 38000) say it in their message.
-- inturn.applier.breaker.is_outage says the same of what handlers in Python get from the database.
-- took: how long the command was at work; in seconds in what is returned.
CREATE FUNCTION inturn._outage_of(
    state text, message text, key text, epoch bigint, from_seq bigint, failed_seq bigint, error text, took interval
) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE
    WHEN state ~ '^(08...|53[0-3]00|57P0.|580[03]0|HV00N)$' OR state ~ '^(38000|XX000)$'
        AND message ~* ('(could ?n.t|failed to|unable to|cannot) (connect|resolve)|name resolution|service not known'
                        '|connection ?(error|refused|reset|closed|aborted)|closed connection|disconnected|empty reply'
                        '|timed ?out|timeout|unreachable|no route to host')
        THEN jsonb_build_object('key', key, 'epoch', epoch, 'from_seq', from_seq, 'failed_seq', failed_seq,
                                'error', left(error, 8000), 'took', extract(epoch FROM took)::double precision) END
$$;
COMMENT ON FUNCTION inturn._outage_of IS
    'Internal to the appliers: a failure of a SQL target that looks like an outage of what commands need.';

-- Returns how many seconds a key takes, by the quickest of the last batches. Internal to apply. Takes no locks.
--
-- before: what this returned after the batch before; NULL: there was none. now: what a key took in this one. took: how
-- long this one was. max_keys: the most that share one.
-- A quicker batch is forgotten slowly, for on a busy machine few wait for nobody; faster after one of at least 100 ms.
-- That a key takes less than half of what fits max_keys is not remembered: targets that become slow would be noticed
-- late. The same as seconds_per_key in applier/pacing.py. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._seconds_per_key(before double precision, now double precision, took interval, max_keys integer)
RETURNS double precision
LANGUAGE sql IMMUTABLE
AS $$
SELECT greatest(least(before OPERATOR(pg_catalog.*) CASE WHEN took OPERATOR(pg_catalog.<) interval '100 ms' THEN 1.1
                                                         ELSE 1.5 END, now), 0.005 OPERATOR(pg_catalog./) max_keys)
$$;
COMMENT ON FUNCTION inturn._seconds_per_key IS
    'Internal to apply: how many seconds a key takes, by the quickest of the last batches.';

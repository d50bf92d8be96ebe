-- Returns whether an applier of another process than this one's serves a topic. Internal to the appliers. Takes no
-- locks.
CREATE FUNCTION inturn._has_others(topic text, applier text) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT EXISTS (SELECT FROM inturn.applier a
               WHERE _has_others.topic = ANY (a.topics)
                 AND inturn._process_of(a.applier) <> inturn._process_of(_has_others.applier)
                 AND a.seen_at > clock_timestamp() - interval '15 s')
$$;
COMMENT ON FUNCTION inturn._has_others IS
    'Internal to the appliers: whether an applier of another process serves a topic.';

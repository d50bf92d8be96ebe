-- Records that an operator removes what the topic's own retain would keep; once an hour while that goes on. Internal to
-- prune_batch.
--
-- What operators did to keys is removed with the keys' histories: so a record stays of who removed it.
-- Locks and raises what _record_action does.
CREATE FUNCTION inturn._record_prune(topic text, older_than interval) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    last inturn.operator_action;
BEGIN
    SELECT * INTO last FROM inturn.operator_action a
    WHERE a.topic = _record_prune.topic AND a.key = '' ORDER BY a.id DESC LIMIT 1;
    IF (last.action, last.db_user, last.after ->> 'older_than')
           IS DISTINCT FROM ('prune', session_user::text, older_than::text)
        -- Also where a clock was set back since.
        OR last.acted_at NOT BETWEEN clock_timestamp() - interval '1 hour' AND clock_timestamp() THEN
        PERFORM inturn._record_action(topic, '', NULL, 'prune', NULL, NULL,
                                      jsonb_build_object('older_than', older_than));
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._record_prune IS
    'Internal to prune_batch: records that an operator removes what the topic''s retain would keep.';

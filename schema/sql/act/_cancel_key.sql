-- Skips everything that is pending on a key, and records who wanted it; NULL when nothing is.
-- Internal to cancel_rest and cancel_rest_all.
--
-- was: the key, whose ticket the caller has locked. Locks its row in key_sequence, if no caller holds it.
-- Raises IT041 when too many numbers are missing on it.
CREATE FUNCTION inturn._cancel_key(was inturn.key_cursor, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    last_seq bigint;
    moved inturn.key_cursor;
BEGIN
    IF inturn._misses_many(was.topic, was.key, was.applied_seq) THEN
        PERFORM inturn._refuse_action(
            was.topic, was.key, 'has more than 1000000 numbers missing before its last command',
            'Skip what is not to take effect, and fill-gap what it waits for; or append what is missing.');
    END IF;
    last_seq := inturn._pass_over(was.topic, was.key, was.applied_seq + 1, NULL, was.epoch + 1, 'operator', reason);
    IF last_seq IS NULL THEN
        RETURN NULL;
    END IF;
    moved := inturn._move_past(was, last_seq);
    RETURN inturn._record_action(was.topic, was.key, was.applied_seq + 1, 'cancel-rest', reason,
        inturn._key_facts(was),
        inturn._key_facts(moved) || jsonb_build_object('cancelled', last_seq - was.applied_seq));
END
$$;
COMMENT ON FUNCTION inturn._cancel_key IS
    'Internal to the operators'' functions: skips all that is pending on a key.';

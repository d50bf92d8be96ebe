-- Moves commands from the intake to the log as _append_arrived does. If that fails because of one key, the key's
-- commands are left behind; also where it lost against another transaction, which it might do each time.
-- Internal to _number_topic.
--
-- Raises errors that no key is to blame for: 55P03, 53100 (see _try_lease).
CREATE FUNCTION inturn._append_batch(topic text, tids tid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    one record;
    numbered bigint := 0;
    problem text;
BEGIN
    RETURN inturn._append_arrived(topic, tids);
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE IN ('53100', '55P03') THEN
        RAISE;
    END IF;
    FOR one IN
        SELECT i.key, array_agg(i.ctid) AS tids FROM inturn.intake i
        WHERE i.ctid = ANY (_append_batch.tids) GROUP BY i.key
    LOOP
        SELECT numbered + t.moved, t.problem INTO numbered, problem FROM inturn._try_append(topic, one.tids) t;
        UPDATE inturn.intake i SET left_because = problem WHERE problem IS NOT NULL AND i.ctid = ANY (one.tids);
    END LOOP;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._append_batch IS
    'Internal to the appliers: moves commands from the intake to the log, however a key fails.';

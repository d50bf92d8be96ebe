-- Returns what the next pass goes by after one that took a part of a plan, or some of it. Internal to _number_topic.
-- Takes no locks.
--
-- last.is_full: some of the part is left, above last_id. After the last part all that the plan saw has been looked at,
-- and what its own transaction may have appended since then has not.
CREATE FUNCTION inturn._end_part(last inturn.arrival_pass, last_id bigint) RETURNS inturn.arrival_pass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF last.is_full THEN
        last.from_id := last_id;
        last.is_full := false;
        RETURN last;
    END IF;
    last.from_id := last.to_ids[1];
    last.to_ids := last.to_ids[2:]; last.from_xids := last.from_xids[2:]; last.to_xids := last.to_xids[2:];
    IF last.to_ids = '{}' THEN
        last.seen := last.planned; last.own := ARRAY[last.planned_by];
        last.planned := NULL; last.planned_by := NULL; last.from_id := NULL;
        last.to_ids := NULL; last.from_xids := NULL; last.to_xids := NULL;
    END IF;
    RETURN last;
END
$$;
COMMENT ON FUNCTION inturn._end_part IS 'Internal to the appliers: what the next pass goes by after a part of a plan.';

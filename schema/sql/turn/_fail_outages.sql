-- Records the outages that a batch's commands failed by, in their order; returns how many commands were skipped for it.
-- Internal to the appliers, which judge outages when finish has locked the batch's other keys: all by one call, for the
-- callers of those keys wait until the commit.
--
-- outages: as apply_batch returns them, each with counts: whether it is an attempt. Locks and raises what fail does.
CREATE FUNCTION inturn._fail_outages(topic text, outages jsonb, applier text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    outage record;
    skipped bigint := 0;
BEGIN
    FOR outage IN
        SELECT * FROM jsonb_to_recordset(outages)
            o (key text, epoch bigint, from_seq bigint, failed_seq bigint, error text, took double precision,
               counts boolean)
    LOOP
        IF inturn.fail(topic, outage.key, outage.epoch, outage.from_seq, outage.failed_seq, outage.error, applier,
                       CASE WHEN NOT outage.counts THEN 'outage' END, took => make_interval(secs => outage.took))
            IN ('skipped', 'cancelled') THEN
            skipped := skipped + inturn._count_skipped(topic, outage.key, outage.failed_seq, outage.epoch);
        END IF;
    END LOOP;
    RETURN skipped;
END
$$;
COMMENT ON FUNCTION inturn._fail_outages IS 'Internal to the appliers: records the outages that a batch has met.';

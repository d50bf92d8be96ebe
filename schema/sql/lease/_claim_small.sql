-- Claims ready keys of a topic by lease whose next command is short, and returns that alone. Internal to the applier
-- for outside work, which has long payloads in hand and memory for short ones only.
--
-- octets: how many the payloads may have together, as text. What is longer is passed over, among the 200 keys that have
-- been ready the longest, for 100 ms. A key that itself makes its claim fail is put off (see _try_lease).
-- Where the topic has merge rules, the next commands come as what they become if that is short; otherwise the first one
-- comes as it is: only what has become of commands tells how long that is.
-- Runs as the applier: so do the functions that merge. Locks what claim by lease does, and raises that; IT013 where a
-- function that merges belongs to somebody else than when its rule was set.
CREATE FUNCTION inturn._claim_small(topic text, max_keys integer, applier text, octets bigint)
RETURNS TABLE (
    key text, epoch bigint, attempt integer, lease_until timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    leave_at timestamptz;
    pass constant inturn._pass := inturn._begin_saved_pass(ARRAY[_claim_small.topic]);
    settings constant inturn.topic := inturn._settings_of(_claim_small.topic);
    left_octets bigint := octets;
    taken integer := 0;
    claimed record; begun record; command record;
BEGIN
    IF pass.found = '{}' THEN
        RETURN;
    END IF;
    PERFORM inturn._require_merges(settings);
    FOR claimed IN SELECT * FROM inturn.claim(_claim_small.topic, pass.starts[1], 200) LOOP
        leave_at := coalesce(leave_at, clock_timestamp() + interval '100 ms'); -- however long the claim took
        EXIT WHEN taken >= max_keys OR clock_timestamp() >= leave_at;
        SELECT * INTO begun FROM inturn._lease_claimed(
            _claim_small.topic, claimed.key, claimed.epoch, NULL, applier, true, left_octets);
        CONTINUE WHEN NOT begun.fits OR (begun.leased).key IS NULL;
        taken := taken + 1;
        SELECT * INTO command FROM inturn._first_merged(
            settings, claimed.key, claimed.applied_seq, claimed.epoch, begun.max_commands, left_octets);
        CONTINUE WHEN command.seq IS NULL;
        key := claimed.key; epoch := claimed.epoch;
        attempt := (begun.leased).attempts + 1; lease_until := (begun.leased).lease_until;
        seq := command.seq; name := command.name; payload := command.payload; created_at := command.created_at;
        left_octets := left_octets - octet_length(payload::text);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._claim_small IS
    'Internal to the applier for outside work: claims keys by lease whose next command is short.';

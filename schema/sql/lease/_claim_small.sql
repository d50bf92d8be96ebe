-- Claims ready keys of a topic by lease whose next command is short, and returns that alone. Internal to the applier
-- for outside work, which has long payloads in hand and memory for short ones only.
--
-- octets: how many the payloads may have together, as text. What is longer is passed over, among the 200 keys that have
-- been ready the longest, for 100 ms. Where the topic has merge rules nothing is claimed: how long commands become is
-- not known before. A key that itself makes its claim fail is put off (see _try_lease).
-- Locks and raises what claim by lease does.
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
    leave_at constant timestamptz := clock_timestamp() + interval '100 ms';
    pass constant inturn._pass := inturn._begin_saved_pass(ARRAY[_claim_small.topic]);
    left_octets bigint := octets;
    taken integer := 0;
    claimed record;
    begun record;
BEGIN
    IF pass.found = '{}' OR (inturn._settings_of(_claim_small.topic)).merges THEN
        RETURN;
    END IF;
    FOR claimed IN SELECT * FROM inturn.claim(_claim_small.topic, pass.starts[1], 200) LOOP
        EXIT WHEN taken >= max_keys OR clock_timestamp() >= leave_at;
        SELECT * INTO begun FROM inturn._lease_claimed(
            _claim_small.topic, claimed.key, claimed.epoch, NULL, applier, true, left_octets);
        CONTINUE WHEN NOT begun.fits OR (begun.leased).key IS NULL;
        taken := taken + 1;
        key := claimed.key; epoch := claimed.epoch;
        attempt := (begun.leased).attempts + 1; lease_until := (begun.leased).lease_until;
        SELECT l.seq, l.name, l.payload, l.created_at INTO seq, name, payload, created_at
        FROM inturn._turn_commands(_claim_small.topic, ARRAY[claimed.key], ARRAY[claimed.epoch],
                                   ARRAY[claimed.applied_seq], 1) l;
        left_octets := left_octets - octet_length(payload::text);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._claim_small IS
    'Internal to the applier for outside work: claims keys by lease whose next command is short.';

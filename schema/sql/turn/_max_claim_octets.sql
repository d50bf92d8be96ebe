-- Returns how many octets the payloads of one claim may have together, as text. Internal to the claims. Takes no locks.
--
-- 16 MiB, or what the session's inturn.max_claim_octets says, if that is a number: a target may have set anything.
-- Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._max_claim_octets() RETURNS bigint
LANGUAGE sql STABLE
AS $$
SELECT coalesce(CASE WHEN pg_catalog.current_setting('inturn.max_claim_octets', true)
                              OPERATOR(pg_catalog.~) '^[1-9][0-9]{0,17}$'
                     THEN pg_catalog.current_setting('inturn.max_claim_octets', true)::bigint END, 16777216)
$$;
COMMENT ON FUNCTION inturn._max_claim_octets IS
    'Internal to the claims: how many octets the payloads of one claim may have.';

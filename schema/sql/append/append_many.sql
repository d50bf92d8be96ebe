CREATE FUNCTION inturn.append_many(
    topic text, keys text[], names text[],
    payloads jsonb[] DEFAULT NULL, idempotency_keys text[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Appends many commands of one topic in one round trip; returns their seqs in the order of the arrays.
--
-- keys, names, payloads and idempotency_keys run in parallel; payloads may be NULL (all '{}'), idempotency_keys too.
-- Commands of one key keep their order in the arrays.
-- Locks the keys in byte order, each as append does, so that calls of append_many never deadlock among themselves
-- as long as a transaction makes one such call.
-- Raises what append raises, and IT006 when the arrays differ in length.
DECLARE
    seqs bigint[] := array_fill(NULL::bigint, ARRAY[coalesce(cardinality(keys), 0)]);
    command record;
BEGIN
    IF cardinality(keys) IS DISTINCT FROM cardinality(names)
        OR cardinality(payloads) <> cardinality(keys) OR cardinality(idempotency_keys) <> cardinality(keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT006',
            MESSAGE = format('append_many got %s keys, %s names, %s payloads and %s idempotency keys',
                coalesce(cardinality(keys)::text, 'NULL'), coalesce(cardinality(names)::text, 'NULL'),
                coalesce(cardinality(payloads)::text, 'NULL'), coalesce(cardinality(idempotency_keys)::text, 'NULL')),
            HINT = 'Give arrays of one length; payloads and idempotency_keys may also be NULL.';
    END IF;
    FOR command IN
        SELECT * FROM unnest(keys, names, payloads, idempotency_keys)
            WITH ORDINALITY AS c (key, name, payload, idempotency_key, position)
        ORDER BY c.key COLLATE "C", c.position
    LOOP
        seqs[command.position] := inturn.append(
            topic, command.key, command.name, command.payload, command.idempotency_key);
    END LOOP;
    RETURN seqs;
END
$$;
COMMENT ON FUNCTION inturn.append_many IS
    'Appends many commands of one topic in one round trip; returns their seqs in the order of the arrays.';

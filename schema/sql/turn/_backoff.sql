-- Returns how long a key waits after this many failures of its next command: a random part, between half and the
-- whole, of backoff_base * 2^(failures - 1), or of backoff_cap if that is less. Internal to fail. Takes no locks.
CREATE FUNCTION inturn._backoff(settings inturn.topic, failures integer) RETURNS interval
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT make_interval(secs => (0.5 + random() / 2) * least(
    extract(epoch FROM settings.backoff_cap)::double precision,
    extract(epoch FROM settings.backoff_base)::double precision * power(2, least(failures - 1, 60))))
$$;
COMMENT ON FUNCTION inturn._backoff IS 'Internal to fail: how long a key waits after so many failures.';

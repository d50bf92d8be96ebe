-- Returns what a command asks for that failed with this SQLSTATE and DETAIL: what fail takes as verdict and
-- retry_after.
-- Internal to the appliers. Takes no locks.
--
-- IT020: retry, after the interval in DETAIL if there is one; IT021: hold; IT022: skip; IT023: outage, which counts as
-- no attempt, after such an interval; any other: nothing, NULL.
-- problem: what is wrong with the DETAIL, which then is ignored.
CREATE FUNCTION inturn._read_verdict(
    state text, detail text, OUT verdict text, OUT retry_after interval, OUT problem text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    verdict := CASE state WHEN 'IT020' THEN 'retry' WHEN 'IT021' THEN 'hold' WHEN 'IT022' THEN 'skip'
                    WHEN 'IT023' THEN 'outage' END;
    IF verdict IN ('retry', 'outage') THEN
        retry_after := nullif(trim(detail), '')::interval;
    END IF;
EXCEPTION WHEN data_exception THEN
    problem := 'That DETAIL is not an interval: the command is tried again after the usual wait.';
END
$$;
COMMENT ON FUNCTION inturn._read_verdict IS
    'Internal to the appliers: what a command asks for that failed with this SQLSTATE.';

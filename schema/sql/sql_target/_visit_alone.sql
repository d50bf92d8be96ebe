-- Takes the next ready key of a topic alone (see _claim_alone), and applies its commands. Internal to apply.
--
-- hand: where to claim from, and then where the claimed key was; NULL: none was ready, and careful is 0. settings: of
-- the session, as _keep_settings has them. failing: see _judge_outages.
-- Commits twice or more. Raises what _require_target does, before the claim; 57014 after the second commit when the
-- query was cancelled: the command in hand has failed. An upgrade may have committed meanwhile, so that what this
-- session began has parts no more: the key is let go as it was, and that is raised, as it is in a transaction that
-- takes many keys.
CREATE PROCEDURE inturn._visit_alone(
    topic text, INOUT hand timestamptz, applier text, settings text[],
    INOUT commands bigint, INOUT failures bigint, INOUT careful integer, INOUT failing jsonb
)
LANGUAGE plpgsql
-- It commits, so it cannot be pinned: all is qualified.
AS $$
DECLARE
    claimed pg_catalog.record;
    turn pg_catalog.record;
    problem pg_catalog.text; state pg_catalog.text;
    most integer; -- NULL: not held
    blameless boolean;
    revision constant pg_catalog.text := inturn._revision();
    upgraded boolean;
BEGIN
    SELECT * INTO claimed FROM inturn._require_target(inturn._sql_topic(topic)) t
    CROSS JOIN inturn._claim_alone(topic, hand, applier) c;
    COMMIT AND CHAIN;
    hand := claimed.ready_at;
    -- Where none could be claimed now, none was taken alone: it is asked again in a moment.
    careful := CASE WHEN hand IS NULL THEN 0 WHEN claimed.key IS NULL THEN careful
                    ELSE careful OPERATOR(pg_catalog.-) 1 END;
    IF claimed.epoch IS NULL THEN
        PERFORM pg_catalog.pg_sleep(0.05) WHERE claimed.key IS NULL AND hand IS NOT NULL;
        RETURN;
    END IF;
    BEGIN
        most := inturn._hold_alone(topic, claimed.key, claimed.epoch);
        SELECT * INTO turn FROM inturn._apply_alone(topic, claimed.key, claimed.epoch, false, most);
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
    END;
    COMMIT AND CHAIN;
    PERFORM inturn._keep_settings(settings);
    IF most IS NULL AND state OPERATOR(pg_catalog.=) ANY ('{55P03,IT030}') THEN
        RETURN; -- somebody else has it locked, or claimed: the lease runs out
    ELSIF state IS NOT NULL THEN
        -- The turn itself could not be ended. Lost against another transaction, or never begun, the key is put off; of
        -- several commands nobody can tell which one it was.
        upgraded := pg_catalog.starts_with(state, '42') AND inturn._revision() OPERATOR(pg_catalog.<>) revision;
        blameless := upgraded OR pg_catalog.starts_with(state, '40');
        PERFORM inturn._lose_alone(topic, claimed.key, claimed.epoch, CASE WHEN NOT upgraded THEN problem END,
                                   CASE WHEN upgraded THEN true
                                        WHEN NOT blameless THEN most OPERATOR(pg_catalog.=) 1 END);
        COMMIT AND CHAIN;
        IF upgraded THEN
            RAISE USING ERRCODE = state, MESSAGE = problem,
                HINT = 'The schema was upgraded meanwhile: call inturn.apply() again.';
        END IF;
        failures := failures OPERATOR(pg_catalog.+) CASE WHEN blameless THEN 0 ELSE 1 END;
        RETURN;
    END IF;
    failing := inturn._judge_outages(topic, pg_catalog.jsonb_build_array() OPERATOR(pg_catalog.||) turn.outage,
                                     turn.answered OR turn.commands OPERATOR(pg_catalog.>) 0, NULL, failing);
    commands := commands OPERATOR(pg_catalog.+) turn.commands;
    failures := failures OPERATOR(pg_catalog.+) turn.failures;
    IF turn.cancellation IS NOT NULL THEN
        PERFORM inturn._end_applier(applier);
        COMMIT AND CHAIN;
        RAISE query_canceled USING MESSAGE = turn.cancellation,
            DETAIL = pg_catalog.format('The next command of key %L of topic %L has failed by it, and is tried again '
                                       'later.', claimed.key, topic);
    END IF;
END
$$;
COMMENT ON PROCEDURE inturn._visit_alone IS 'Internal to apply: takes the next ready key of a topic alone.';

-- What is exceptional about a key: that it is retrying, held, paused, waiting or leased. A row only while it lasts,
-- beside the key's ticket and with its epoch; the ticket's lock guards it.
CREATE TABLE inturn.key_mark (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    failed_at timestamptz,
    held_at timestamptz,
    paused_at timestamptz,
    paused_until timestamptz,
    waiting_at timestamptz,
    claimed_by text,
    claimed_at timestamptz,
    lease_until timestamptz,
    ready_at timestamptz,
    lost integer NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, key, epoch)
) WITH (fillfactor = 80);
-- An index a state, for operators.
CREATE INDEX key_mark_held ON inturn.key_mark (topic, held_at) WHERE held_at IS NOT NULL;
CREATE INDEX key_mark_retrying ON inturn.key_mark (topic, ready_at) WHERE attempts > 0 AND held_at IS NULL;
CREATE INDEX key_mark_waiting ON inturn.key_mark (topic, waiting_at) WHERE waiting_at IS NOT NULL;
CREATE INDEX key_mark_leased ON inturn.key_mark (topic, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX key_mark_paused ON inturn.key_mark (topic, paused_at) WHERE paused_at IS NOT NULL;
-- Of the suspects, which a process works on one at a time; and of those that wait for that and were lost once.
CREATE INDEX key_mark_lost ON inturn.key_mark (claimed_by COLLATE "C") WHERE lost > 0 AND claimed_by IS NOT NULL;
CREATE INDEX key_mark_suspect ON inturn.key_mark (topic)
WHERE lost = 1 AND attempts = 0 AND claimed_by IS NULL AND held_at IS NULL;
COMMENT ON TABLE inturn.key_mark IS 'What is exceptional about a key, while it lasts.';
COMMENT ON COLUMN inturn.key_mark.attempts IS 'How often the next command has failed.';
COMMENT ON COLUMN inturn.key_mark.last_error IS 'The latest failure of the next command.';
COMMENT ON COLUMN inturn.key_mark.held_at IS
    'Since when the key stands still because its next command failed for good; or was not appended in time: then '
    'waiting_at is set too.';
COMMENT ON COLUMN inturn.key_mark.paused_at IS 'Since when the key is paused by an operator.';
COMMENT ON COLUMN inturn.key_mark.paused_until IS
    'When it goes on by itself; NULL while paused: when an operator says so.';
COMMENT ON COLUMN inturn.key_mark.waiting_at IS 'Since when later numbers are there and the next one is missing.';
COMMENT ON COLUMN inturn.key_mark.claimed_by IS
    'Which applier has the key by lease; it stays until the next claim when the lease runs out.';
COMMENT ON COLUMN inturn.key_mark.claimed_at IS 'Since when.';
COMMENT ON COLUMN inturn.key_mark.lease_until IS 'When the lease runs out: from then on any applier may claim the key.';
COMMENT ON COLUMN inturn.key_mark.ready_at IS
    'When the key is ready, as its ticket says, while it is retrying: operators list those by it.';
COMMENT ON COLUMN inturn.key_mark.lost IS
    'Over 0: the key is taken alone. An applier was lost with it in hand, perhaps with others, or what its command '
    'does to the session or the transaction would meet others. 1, leased: in company of few others; over 1, leased: '
    'alone.';

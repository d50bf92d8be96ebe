-- The appliers' side of a key: how far it is applied, and when an applier should come by.
-- No CHECKs: see command_log. held_at and ready_at are never both set. A key that is paused for good has no ready_at;
-- one that is paused until a time becomes ready at that time by itself.
CREATE TABLE inturn.key_cursor (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    applied_seq bigint NOT NULL DEFAULT 0,
    ready_at timestamptz,
    epoch bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    empty_turns integer NOT NULL DEFAULT 0,
    last_error text,
    failed_at timestamptz,
    held_at timestamptz,
    paused_at timestamptz,
    paused_until timestamptz,
    waiting_at timestamptz,
    claimed_by text,
    claimed_at timestamptz,
    lease_until timestamptz,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
-- The claim's index, and the only one that every turn has to maintain.
CREATE INDEX key_cursor_ready ON inturn.key_cursor (topic, ready_at) WHERE ready_at IS NOT NULL;
-- An operator's, a state each; the keys in them are few.
CREATE INDEX key_cursor_held ON inturn.key_cursor (topic, held_at) WHERE held_at IS NOT NULL;
CREATE INDEX key_cursor_retrying ON inturn.key_cursor (topic, ready_at) WHERE attempts > 0 AND ready_at IS NOT NULL;
CREATE INDEX key_cursor_waiting ON inturn.key_cursor (topic, waiting_at) WHERE waiting_at IS NOT NULL;
CREATE INDEX key_cursor_leased ON inturn.key_cursor (topic, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX key_cursor_paused ON inturn.key_cursor (topic, paused_at) WHERE paused_at IS NOT NULL;
COMMENT ON TABLE inturn.key_cursor IS 'The appliers'' side of a key: how far it is applied, and when it is ready.';
COMMENT ON COLUMN inturn.key_cursor.applied_seq IS 'Everything up to here has taken effect, or was passed over (see skip).';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle, held, paused or waiting.';
COMMENT ON COLUMN inturn.key_cursor.epoch IS 'Counts the turns of the key, and the operators'' moves of its cursor; the fencing token.';
COMMENT ON COLUMN inturn.key_cursor.attempts IS 'How often the next command has failed.';
COMMENT ON COLUMN inturn.key_cursor.empty_turns IS 'Turns in a row that found nothing to apply because a caller''s transaction was open.';
COMMENT ON COLUMN inturn.key_cursor.last_error IS 'The latest failure of the next command.';
COMMENT ON COLUMN inturn.key_cursor.held_at IS 'Since when the key stands still because its next command failed for good; or was not appended in time: then waiting_at is set too.';
COMMENT ON COLUMN inturn.key_cursor.paused_at IS 'Since when an operator keeps the key standing still.';
COMMENT ON COLUMN inturn.key_cursor.paused_until IS 'When it goes on by itself; NULL while paused: when an operator says so.';
COMMENT ON COLUMN inturn.key_cursor.waiting_at IS 'Since when later numbers are there and the next one is missing.';
COMMENT ON COLUMN inturn.key_cursor.claimed_by IS 'Which applier has the key by lease; it stays until the next claim when the lease runs out.';
COMMENT ON COLUMN inturn.key_cursor.claimed_at IS 'Since when.';
COMMENT ON COLUMN inturn.key_cursor.lease_until IS 'When the lease runs out: from then on any applier may claim the key.';

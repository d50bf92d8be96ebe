-- The appliers' side of a key that is not idle: where it stands, and when an applier should come by. A claim locks
-- tickets.
-- A key has one ticket at most: only the append that finds the key's last turn drained inserts one, under the callers'
-- lock, with that turn's epoch; whoever replaces or deletes it has locked it. It is found by its epoch or by its time,
-- never by its key alone, so what earlier turns left in the indexes is not walked over. No CHECKs: see command_log.
CREATE TABLE inturn.ticket (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    applied_seq bigint NOT NULL,
    ready_at timestamptz NOT NULL,
    empty_turns integer NOT NULL DEFAULT 0,
    marked boolean NOT NULL DEFAULT false,
    PRIMARY KEY (topic, key, epoch)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
-- Of another collation, which orders just the same: so it serves only queries that ask for it, with topic COLLATE
-- "POSIX". Where few keys are awake it is the smaller index: the planner would find a key by it, over all that the
-- topic's turns have left there.
CREATE INDEX ticket_ready ON inturn.ticket (topic COLLATE "POSIX", ready_at);
COMMENT ON TABLE inturn.ticket IS 'The keys that are not idle: where each stands, and when it is ready.';
COMMENT ON COLUMN inturn.ticket.epoch IS
    'Counts the turns of the key, and the operators'' moves of its cursor; the fencing token.';
COMMENT ON COLUMN inturn.ticket.applied_seq IS 'Everything up to here has taken effect, or was skipped (see skip).';
COMMENT ON COLUMN inturn.ticket.ready_at IS
    'From when on an applier may claim the key; infinity: not before somebody acts (held, paused without an end, '
    'waiting).';
COMMENT ON COLUMN inturn.ticket.empty_turns IS
    'Turns in a row that found nothing to apply because a caller''s transaction was open.';
COMMENT ON COLUMN inturn.ticket.marked IS 'Whether the key has a row in key_mark.';

-- Where each key stands: its ticket and its marks; an idle key's last turn. A few probes of indexes a key.
-- A ticket never has a lower epoch than the key's last turn: older entries, which a snapshot may keep, are not walked
-- over.
CREATE VIEW inturn.key_cursor AS
SELECT s.topic, s.key,
       coalesce(t.applied_seq, u.applied_seq, 0) AS applied_seq,
       nullif(t.ready_at, 'infinity') AS ready_at,
       coalesce(t.epoch, u.epoch, 0) AS epoch,
       coalesce(m.attempts, 0) AS attempts,
       coalesce(t.empty_turns, 0) AS empty_turns,
       m.last_error, m.failed_at, m.held_at, m.paused_at, m.paused_until, m.waiting_at, m.claimed_by, m.claimed_at,
       m.lease_until,
       coalesce(m.lost, 0) AS lost
FROM inturn.key_sequence s
LEFT JOIN LATERAL (
    SELECT u.applied_seq, u.epoch FROM inturn.turn u
    WHERE u.topic = s.topic AND u.key = s.key ORDER BY u.epoch DESC LIMIT 1) u ON true
LEFT JOIN LATERAL (
    SELECT t.applied_seq, t.ready_at, t.epoch, t.empty_turns, t.marked FROM inturn.ticket t
    WHERE t.topic = s.topic AND t.key = s.key AND t.epoch >= coalesce(u.epoch, 0)
    ORDER BY t.epoch DESC LIMIT 1) t ON true
LEFT JOIN LATERAL (
    SELECT m.* FROM inturn.key_mark m
    WHERE t.marked AND m.topic = s.topic AND m.key = s.key AND m.epoch = t.epoch LIMIT 1) m ON true;
COMMENT ON VIEW inturn.key_cursor IS 'Where each key stands: its ticket and its marks; an idle key''s last turn.';
COMMENT ON COLUMN inturn.key_cursor.applied_seq IS
    'Everything up to here has taken effect, or was skipped (see skip).';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS
    'From when on an applier may claim the key; NULL: idle, held, paused or waiting.';
COMMENT ON COLUMN inturn.key_cursor.epoch IS
    'Counts the turns of the key, and the operators'' moves of its cursor; the fencing token.';

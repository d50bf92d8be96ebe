-- Locks a key for an operator, and returns where it stands. Internal to the operators' functions.
--
-- Waits for the applier that is at work on the key, in its transaction or by lease, for at most lock_timeout (set it:
-- the default is for ever). beside_lease: do not wait for an applier's lease.
-- Locks the key's ticket; of an idle key, which has none, its row in key_sequence, so that its callers wait too.
-- Raises IT001, IT040 no such key, IT042 when the wait was too long, with who holds it; IT031 outside READ COMMITTED,
-- IT014.
CREATE FUNCTION inturn._lock_cursor(topic text, key text, beside_lease boolean DEFAULT false) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
    timeout constant interval := current_setting('lock_timeout')::interval;
    give_up_at constant timestamptz := CASE WHEN timeout > '0' THEN clock_timestamp() + timeout ELSE 'infinity' END;
BEGIN
    PERFORM inturn._require_read_committed();
    PERFORM inturn._require_grant(topic, 'operator');
    LOOP
        BEGIN
            SELECT * INTO cursor FROM inturn._find_cursor(_lock_cursor.topic, _lock_cursor.key) c;
            EXIT WHEN NOT FOUND;
            -- Not by its lock: with a number of its own, this transaction would keep passes where they are (see
            -- _begin_pass).
            IF NOT beside_lease AND cursor.lease_until > clock_timestamp() THEN
                RAISE EXCEPTION USING ERRCODE = 'IT042';
            END IF;
            -- Without an upper bound on the epoch: whoever waits here for a turn to end gets the ticket as the turn
            -- leaves it.
            PERFORM FROM inturn.ticket t
            WHERE t.topic = cursor.topic AND t.key = cursor.key AND t.epoch >= cursor.epoch FOR UPDATE;
            IF NOT FOUND THEN
                PERFORM FROM inturn.key_sequence s
                WHERE s.topic = cursor.topic AND s.key >= cursor.key AND s.key <= cursor.key
                ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
                IF NOT FOUND OR EXISTS (SELECT FROM inturn.ticket t
                                        WHERE t.topic = cursor.topic AND t.key = cursor.key
                                          AND t.epoch >= cursor.epoch) THEN
                    -- It was forgotten meanwhile, and may be there again; or woken: gives the lock back to its callers.
                    RAISE EXCEPTION USING ERRCODE = 'IT999';
                END IF;
            END IF;
            SELECT * INTO cursor FROM inturn._find_cursor(_lock_cursor.topic, _lock_cursor.key) c;
            EXIT WHEN beside_lease OR (cursor.lease_until > clock_timestamp()) IS NOT TRUE;
            RAISE EXCEPTION USING ERRCODE = 'IT042'; -- gives the lock back: the applier needs it to go on
        EXCEPTION
            WHEN SQLSTATE 'IT999' THEN NULL; -- IT000 would be all that begin with IT
            WHEN lock_not_available OR SQLSTATE 'IT042' THEN
                IF SQLSTATE = '55P03' OR clock_timestamp() >= give_up_at THEN
                    PERFORM inturn._refuse_busy(topic, key);
                END IF;
                PERFORM pg_sleep(0.02); -- nothing else tells when a lease ends
        END;
    END LOOP;
    IF cursor.key IS NULL THEN
        IF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = _lock_cursor.topic) THEN
            PERFORM inturn._refuse_topic(topic);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'IT040',
            MESSAGE = format('topic %L has no key %s', topic, coalesce(quote_literal(left(key, 600)), 'NULL')),
            HINT = 'A key is known from its first committed command on. Keys are compared byte by byte.';
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn._lock_cursor IS
    'Internal to the operators'' functions: locks a key and returns where it stands.';

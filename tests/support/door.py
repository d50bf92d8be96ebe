"""A door for tests: UPDATE inturn.key_cursor puts a key where no function of the schema would."""

from __future__ import annotations

DOOR = """
    CREATE SCHEMA door;
    CREATE FUNCTION door.put_key() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM inturn._save_key(OLD, NEW);
        RETURN NEW;
    END $$;
    CREATE TRIGGER put_key INSTEAD OF UPDATE ON inturn.key_cursor
        FOR EACH ROW EXECUTE FUNCTION door.put_key();
"""

-- Returns the kind of a target, see _target_kinds; no row: it is of none. Internal. Takes no locks. Qualified, not
-- pinned: it is inlined.
CREATE FUNCTION inturn._kind_of(target text) RETURNS TABLE (kind text, to_run text)
LANGUAGE sql IMMUTABLE
AS $$
SELECT k.kind, k.to_run FROM inturn._target_kinds() k WHERE target OPERATOR(pg_catalog.~) k.pattern
$$;
COMMENT ON FUNCTION inturn._kind_of IS 'Internal: the kind of a target.';

-- Four sibling roles, none of which inherits from another: a login is granted the one it needs.
-- Roles belong to the whole cluster: where they exist already (another database, a DBA who made them) they are kept.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['inturn_caller', 'inturn_applier', 'inturn_operator', 'inturn_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- made by an install into another database at this moment
            END;
        END IF;
    END LOOP;
END
$$;

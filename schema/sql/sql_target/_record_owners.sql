-- Records anew who owns the functions that targets and merge rules name, where that is the role that was recorded.
-- Returns, for each that was refused until now, the statement that would do the same. Internal to inturn upgrade.
--
-- It is that role where it was renamed; and, in a copy on another server, where a role of the same name owns the
-- function: who restores has made the roles, and says by an upgrade that they are whose they were. Where another role
-- owns it, or one that was made again on the same server, the record stays, and the topic is refused until a deployer
-- has set it again. Only who owns the schema may call it. Locks the rows that it changes.
CREATE FUNCTION inturn._record_owners() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    named record;
    function regprocedure;
    owner text; owner_id text;
BEGIN
    FOR named IN
        SELECT t.name AS topic, NULL::text AS first_name, NULL::text AS then_name, t.target AS code,
               t.target_owner AS was, t.target_owner_id AS was_id
        FROM inturn.topic t WHERE inturn._function_name(t.target) IS NOT NULL
        UNION ALL
        SELECT r.topic, r.first_name, r.then_name, r.becomes, r.function_owner, r.function_owner_id
        FROM inturn.merge_rule r WHERE inturn._function_name(r.becomes) IS NOT NULL
        ORDER BY 1, 2 NULLS FIRST, 3
    LOOP
        BEGIN
            function := CASE WHEN named.first_name IS NULL THEN inturn._target_function(named.topic, named.code)
                             ELSE inturn._merge_function(named.code) END;
        EXCEPTION WHEN SQLSTATE 'IT012' OR SQLSTATE 'IT061' THEN
            CONTINUE; -- it is missing, and fails the commands
        END;
        SELECT pg_get_userbyid(p.proowner), inturn._role_id(p.proowner) INTO owner, owner_id FROM pg_proc p
        WHERE p.oid = function::oid;
        CONTINUE WHEN owner = named.was AND owner_id = named.was_id;
        IF owner_id = named.was_id AND owner_id NOT LIKE '/%'
            OR owner = named.was AND split_part(owner_id, '/', 1) <> split_part(named.was_id, '/', 1) THEN
            UPDATE inturn.topic t SET target_owner = owner, target_owner_id = owner_id
            WHERE t.name = named.topic AND named.first_name IS NULL;
            UPDATE inturn.merge_rule r SET function_owner = owner, function_owner_id = owner_id
            WHERE r.topic = named.topic AND r.first_name = named.first_name AND r.then_name = named.then_name;
            -- It was not: see _require_owner.
            CONTINUE WHEN split_part(owner_id, '/', 2) = split_part(named.was_id, '/', 2);
            RETURN NEXT CASE WHEN named.first_name IS NULL
                                 THEN format('SELECT inturn.set_topic(%L, target => %L)', named.topic, named.code)
                ELSE format('SELECT inturn.merge_rule(%L, %L, %L, %L)', named.topic, named.first_name, named.then_name,
                            named.code) END;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._record_owners IS
    'Internal to inturn upgrade: records anew who owns what targets and merge rules name.';

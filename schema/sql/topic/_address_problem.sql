-- Returns what is wrong with the address of an HTTP target, NULL when nothing is. Internal to _check_topic. Takes no
-- locks.
--
-- An address is readable to every operator: secrets come from the applier's environment. {name} and {key} come from
-- callers, who may choose where in a path a command goes, but not to which host.
CREATE FUNCTION inturn._address_problem(target text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE
    WHEN target !~ '^https?:' THEN NULL
    WHEN target ~ '^https?://[^/?#]*@'
        THEN 'its target holds a user or a password, which would be readable here; secrets come from the applier''s '
             'environment'
    WHEN target ~* ('^[^?]*[?](.*&)?([^=&]*(token|secret|passw|pwd|api[-_]?key|auth|sig|credential|session|jwt)[^=&]*'
                    '|key|code)(=|&|$)')
        THEN 'its target holds a secret in its query, which would be readable here; secrets come from the applier''s '
             'environment'
    WHEN target ~ E'[[:space:][:cntrl:]#\\\\]'
        THEN 'its target holds a space, a backslash or a fragment (#), and is not an address'
    WHEN target !~ E'^https?://([^][/?#:{}%]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?([/?]|$)'
        THEN 'its target names no host; {name} and {key} may stand in its path only'
    WHEN substring(target FROM '^https?://[^/?]*:([0-9]{1,5})(?:[/?]|$)')::integer NOT BETWEEN 1 AND 65535
        THEN 'its target has a port that no machine has; 1 to 65535 are allowed'
    WHEN target ~ '[?].*[{}]' OR regexp_replace(target, E'\\{(name|key)\\}', '', 'g') ~ '[{}]'
        THEN 'its target holds braces; only {name} and {key} are replaced, in its path only'
    END
$$;
COMMENT ON FUNCTION inturn._address_problem IS 'Internal to _check_topic: what is wrong with an address.';

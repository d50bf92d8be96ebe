-- What operators did: who, when, why, and what it was before. Append-only, and only the operators' functions write it.
CREATE TABLE inturn.operator_action (
    id bigint NOT NULL,
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL DEFAULT '',
    seq bigint,
    action text COLLATE "C" NOT NULL,
    reason text,
    acted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    db_user text NOT NULL DEFAULT session_user,
    os_user text,
    acting_as text,
    before jsonb,
    after jsonb,
    PRIMARY KEY (topic, key, id)
);
COMMENT ON TABLE inturn.operator_action IS 'What operators did: who, when, why, and what it was before.';
COMMENT ON COLUMN inturn.operator_action.id IS
    'When it was recorded, in microseconds since 1970; above those of the key, or of the topic itself, before it.';
COMMENT ON COLUMN inturn.operator_action.key IS 'Empty: the action was on the whole topic.';
COMMENT ON COLUMN inturn.operator_action.db_user IS 'Whose login the session had.';
COMMENT ON COLUMN inturn.operator_action.os_user IS
    'USER@HOST, as the inturn command says (inturn.os_user); not checked.';
COMMENT ON COLUMN inturn.operator_action.acting_as IS
    'Whom the login acted for, as --as says (inturn.acting_as); not checked.';

-- To whom a topic is granted, beyond one of the three roles: a topic that is granted to nobody as `role` is open to
-- that whole role.
CREATE TABLE inturn.topic_grant (
    topic text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL
        CHECK (role IN ('caller', 'applier', 'operator')),
    login text COLLATE "C" NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, role, login)
);
COMMENT ON TABLE inturn.topic_grant IS
    'To whom a topic is granted; a role that nobody is granted on it is open to all who have it.';
COMMENT ON COLUMN inturn.topic_grant.role IS 'caller, applier or operator.';
COMMENT ON COLUMN inturn.topic_grant.login IS 'A role of the server: a login, or a group of them.';

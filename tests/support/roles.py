"""The logins of a test's server: the installer's, one for each role, and none of them a superuser.

What a test runs itself runs as the role whose it is, or as the installer: see `statements.login_of`; a
connection of its own names its login. What it starts has the role that the process has in production: see
`as_role`. Whoever needs a superuser says so: `Server.connect` and `Database.administer` for the tests' own
administrator, `Database.as_superuser` for a process of inturn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from inturn.cli.act.actions import ACTIONS

#: Owns the databases and what is in them: installs, creates topics, names code, and looks.
OWNER = "test_owner"
CALLER, APPLIER, OPERATOR, DEPLOYER = "test_caller", "test_applier", "test_operator", "test_deployer"
#: A service that is posted to, beside its own tables.
RECEIVER = "test_receiver"
#: Makes the demo's database, and does everything in it.
DEMO = "test_demo"
LOGINS = (OWNER, CALLER, APPLIER, OPERATOR, DEPLOYER, RECEIVER, DEMO)
#: For a process of inturn, where a test says so.
SUPERUSER = "test_superuser"
#: What the sessions of the tests' own administrator announce, who is the server's first superuser.
ADMINISTRATOR = "the administrator of the tests"

#: Run once on a new server. The roles of inturn are the cluster's: whoever installs finds them.
MAKE_LOGINS = f"""
    CREATE ROLE {SUPERUSER} LOGIN SUPERUSER;
    CREATE ROLE {OWNER} LOGIN CREATEROLE CREATEDB;
    GRANT pg_monitor, pg_signal_backend TO {OWNER};
    SET ROLE {OWNER};
    CREATE ROLE inturn_caller;
    CREATE ROLE inturn_applier;
    CREATE ROLE inturn_operator;
    CREATE ROLE inturn_admin;
    CREATE ROLE inturn_receiver;
    RESET ROLE;
    CREATE ROLE {CALLER} LOGIN IN ROLE inturn_caller;
    CREATE ROLE {APPLIER} LOGIN IN ROLE inturn_applier;
    CREATE ROLE {OPERATOR} LOGIN IN ROLE inturn_operator, pg_signal_backend;
    CREATE ROLE {DEPLOYER} LOGIN IN ROLE inturn_admin;
    CREATE ROLE {RECEIVER} LOGIN IN ROLE inturn_receiver;
    CREATE ROLE {DEMO} LOGIN CREATEDB;
"""


def members(schema: str = "inturn") -> str:
    """Return what gives the logins the roles of a schema, where those were made anew."""
    return f"""
        GRANT {schema}_caller TO {CALLER};
        GRANT {schema}_applier TO {APPLIER};
        GRANT {schema}_operator TO {OPERATOR};
        GRANT {schema}_admin TO {DEPLOYER};
    """


#: What tests set in sessions, which takes a superuser otherwise. Since 15.
SETTINGS = f"""
    GRANT SET ON PARAMETER session_replication_role TO {OWNER};
    GRANT SET ON PARAMETER deadlock_timeout TO {OWNER}, {CALLER}, {APPLIER}, {OPERATOR};
    GRANT SET ON PARAMETER max_stack_depth TO {CALLER};
"""
#: Whom the owner makes it may become, to give them objects. Since 16; before, it may become nobody.
SELF_GRANT = f"ALTER ROLE {OWNER} SET createrole_self_grant = 'set'"

#: Run in a database once the schema is in it: what the owner makes from now on are the tables that targets,
#: handlers and callers work with.
THEIR_TABLES = f"""
    ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {CALLER}, {APPLIER};
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {CALLER}, {APPLIER};
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO {CALLER}, {APPLIER};
"""

#: The same no more.
NOT_THEIR_TABLES = THEIR_TABLES.replace("GRANT", "REVOKE").replace(" TO ", " FROM ")

#: The same for what is there already.
THEIR_APP = f"""
    GRANT USAGE ON SCHEMA app TO {CALLER}, {APPLIER};
    GRANT ALL ON ALL TABLES IN SCHEMA app TO {CALLER}, {APPLIER};
    GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO {CALLER}, {APPLIER};
"""

#: Each command of inturn → whose it is; `None`: it connects to nothing that a test has made.
LOGIN_OF: dict[str, str | None] = {
    "upgrade": OWNER,
    "downgrade": OWNER,
    "topic create": DEPLOYER,
    "topic set": DEPLOYER,
    "topic merge": DEPLOYER,
    "topic list": DEPLOYER,
    "topic show": DEPLOYER,
    "topic grant": OWNER,
    "topic revoke": OWNER,
    "embedded start": None,
    "embedded status": None,
    "embedded stop": None,
    "completion": None,
    "append": CALLER,
    "wait": CALLER,
    "apply": APPLIER,
    "demo": DEMO,
    "status": OPERATOR,
    "keys": OPERATOR,
    "why": OPERATOR,
    "show": OPERATOR,
    "doctor": OPERATOR,
    "metrics": OPERATOR,
    "verify": OPERATOR,
    "prune": OPERATOR,
    **{action.name: OPERATOR for action in ACTIONS},
}

_AS_OWNER = re.compile(rf"(?<=user=){OWNER}\b|(?<=//){OWNER}(?=@)")


def login_for(args: Sequence[str]) -> str:
    """Return the login of a command line of inturn, its options before the command or after it."""
    words = [word for word in args if not word.startswith("-")]
    for n in range(len(words)):
        for command in (" ".join(words[n : n + 2]), words[n]):
            if command == "wait" and "--topic" not in args:
                return OPERATOR  # a caller reads no list of topics, and names its own
            if command in LOGIN_OF:
                return LOGIN_OF[command] or OWNER
    return OWNER


def as_role(text: str, login: str) -> str:
    """Return a connection string with this login in place of the owner's; another is somebody's choice."""
    return _AS_OWNER.sub(login, text)


def with_login(dsn: str, *args: str) -> list[str]:
    """Return a connection string and a command line, both with the command's login for the owner's."""
    return [as_role(text, login_for(args)) for text in (dsn, *args)]

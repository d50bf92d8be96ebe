"""Every SQL statement of the appliers, once: in the chapters of schema/sql, and of the session itself.

Each is a Call: the code in inside/ and outside/ says when it is made, and on which connection.
"""

from inturn.applier.calls import appliers, lease, metrics, session, sql_target, turn

__all__ = ["appliers", "lease", "metrics", "session", "sql_target", "turn"]

"""The migrations.

Until the first release there is one, 0001, and it is the living script: what the files of sql/ say.

The first release freezes it: `source.script()` goes into versions/0001_core.sql, 0001_core.py reads that
file instead, and tests/schema/test_schema_revisions.py gets its checksum. From then on it is never edited. A
change to the schema is made in sql/ and is a new revision, which carries only what changed: the tables'
ALTERs, and a frozen copy of each function that changed, there and back. Beside the copies it has 300 lines at
most. It is a module of a few lines beside its two files:

    def upgrade() -> None:
        frozen.run(__file__, "0002_name.sql")


    def downgrade() -> None:
        frozen.run(__file__, "0002_name_down.sql")

HEAD in schema/version.py names the newest one. Appliers of the release before go on working on it, unless it
replaces the view compatible_since with its own number: see docs/explanation/upgrades.md.
"""

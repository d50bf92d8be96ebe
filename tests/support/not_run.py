"""Handlers and targets of which a call would not run a command, once and whole: they are refused."""

from __future__ import annotations

#: What is no target, and what is said of it: the statements that create app.f(inturn.command).
IN_SQL = {
    "a procedure": (
        "CREATE PROCEDURE app.f(command inturn.command) LANGUAGE sql AS 'SELECT 1'",
        "is a procedure",
    ),
    "an aggregate": (
        """CREATE FUNCTION app.step(state int, command inturn.command) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE AGGREGATE app.f(inturn.command) (sfunc = app.step, stype = int)""",
        "is an aggregate",
    ),
    "a function that returns SETOF": (
        "CREATE FUNCTION app.f(command inturn.command) RETURNS SETOF int LANGUAGE sql AS 'VALUES (1), (2)'",
        "returns a set",
    ),
    "a function that returns TABLE": (
        "CREATE FUNCTION app.f(command inturn.command) RETURNS TABLE (a int) LANGUAGE sql AS 'SELECT 1'",
        "returns a set",
    ),
    "a STABLE function": (
        "CREATE FUNCTION app.f(command inturn.command) RETURNS void STABLE LANGUAGE plpgsql AS 'BEGIN END'",
        "is declared STABLE",
    ),
    "an IMMUTABLE function": (
        "CREATE FUNCTION app.f(command inturn.command) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'",
        "is declared IMMUTABLE",
    ),
}
#: Functions of Python, in the words of docs/explanation/failures.md.
IN_PYTHON = ("an async def", "a generator function", "an async generator function")

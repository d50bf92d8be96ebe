"""The code is laid out in pieces that fit into a head: no long file, class or function, no crowded folder.

How long a SQL function may be: tests/schema/test_schema_revisions.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

from support.place import ROOT

FOLDERS = ("schema", "outbox", "applier", "cli")
FILE_LINES, CLASS_LINES, FUNCTION_LINES, FOLDER_FILES = 300, 200, 40, 15
#: What is larger, by name, up to which size, and why. What has become small enough has to leave.
EXCEPTIONS = {
    "applier/inside/worker.py:Worker.__init__": 43,  # it hands fourteen arguments on
    "cli/demo/command.py:demo": 56,  # most of it is text, and the table that it prints
    "cli/look/keys.py:keys": 47,  # half of it declares and documents the options of the command
    "cli/run/apply.py:apply": 51,  # it hands nineteen options on
    "schema/errors.py": 380,  # one tree: a class for each SQLSTATE
}
TEST_LINES, SQL_COLUMNS = 500, 120
#: A chapter of SQL has a file for each function, so more than another folder: as many as a screen lists.
CHAPTER_FILES = 35
#: The files of tests that are longer, and up to how many lines.
LONG_TESTS = {"support/model.py": 570}  # one machine, of which each rule is some lines


def test_everything_fits_or_is_a_named_exception() -> None:
    too_large = {
        name: size
        for folder in FOLDERS
        for name, (size, most) in _sizes(ROOT / folder).items()
        if size > most
    }
    assert {name: size for name, size in too_large.items() if size > EXCEPTIONS.get(name, 0)} == {}
    assert [name for name in EXCEPTIONS if name not in too_large] == [], "no exceptions any more"


def test_a_file_of_tests_is_about_one_subject_and_not_long() -> None:
    sizes = {
        str(path.relative_to(ROOT / "tests")): len(path.read_text("utf-8").splitlines())
        for path in (ROOT / "tests").rglob("*.py")
    }
    too_long = {name: size for name, size in sizes.items() if size > TEST_LINES}
    assert {name: size for name, size in too_long.items() if size > LONG_TESTS.get(name, 0)} == {}
    assert [name for name in LONG_TESTS if name not in too_long] == [], "no exceptions any more"


def test_sql_fits_beside_another_window() -> None:
    wide = [
        (str(path.relative_to(ROOT)), number, len(line))
        for path in sorted((ROOT / "schema").rglob("*.sql"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > SQL_COLUMNS
    ]
    assert wide == []


def test_a_chapter_of_sql_is_seen_at_once() -> None:
    chapters = [folder for folder in (ROOT / "schema" / "sql").iterdir() if folder.is_dir()]
    sizes = {folder.name: len(list(folder.iterdir())) for folder in chapters}
    assert {name: size for name, size in sizes.items() if size > CHAPTER_FILES} == {}
    assert "look" in sizes


def _sizes(root: Path) -> dict[str, tuple[int, int]]:
    """Return how large each folder, file, class and function is, and may be."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        folder = path.parent.relative_to(ROOT)
        found[f"{folder}/"] = len(list(path.parent.glob("*.py"))), FOLDER_FILES
        text = path.read_text("utf-8")
        found[name] = len(text.splitlines()), FILE_LINES
        for scope, size, most in _definitions(ast.parse(text)):
            found[f"{name}:{scope}"] = size, most
    return found


def _definitions(tree: ast.AST, scope: str = "") -> list[tuple[str, int, int]]:
    """Return the classes and functions in it, by their dotted name."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inner = scope
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{scope}.{node.name}".removeprefix(".")
            most = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            found.append((inner, (node.end_lineno or 0) - node.lineno + 1, most))
        found += _definitions(node, inner)
    return found

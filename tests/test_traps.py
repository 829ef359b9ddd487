"""docs/traps.md: every trap has a test that exists, or says that there is nothing to test."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CHECKLIST = (
    *("fixed reference", "K mismatch", "penalised orientation", "max_random", "pad=eos"),
    *("assistant header", "position bias", "gate softmax axis", "debias applied in training"),
    *("one comparison a batch", "pseudo-label used", "RRM seed and self-pairs", "-3 offset"),
    *("xstest counts", "LC index shift", "RM truncation side", "unseeded shuffles"),
    *("remainder prompts", "torn weights", "NaN rewards", "single-process mode"),
    "partial output after a crash",
)


def rows():
    """(trap, here, tests) of every table."""
    lines = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return [tuple(part.strip(" |") for part in row) for row in cells if row[0].strip() != "trap"]


@cache
def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists():
    named = [pair for *_, tests in rows() for pair in NAMED.findall(tests)]
    assert len(named) > 30
    gone = [f"{path}::{name}" for path, name in named if name not in functions_in(path)]
    assert not gone


def test_every_trap_has_a_test_or_is_not_built():
    table = rows()
    assert all(len(row) == 3 for row in table), [row for row in table if len(row) != 3]
    bare = [trap for trap, here, tests in table if not tests and not here.startswith("not built")]
    assert not bare
    odd = [tests for *_, tests in table if NAMED.sub("", tests).strip(", ")]
    assert not odd


def test_the_checklist_is_covered():
    traps = [trap for trap, *_ in rows()]
    assert [one for one in CHECKLIST if not any(one in trap for trap in traps)] == []

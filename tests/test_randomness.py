"""No module draws from a generator that the whole process shares: every draw has a seed."""

import ast
from pathlib import Path

import pytest

import nplus

SRC = Path(nplus.__file__).parent
TORCH = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like")
TORCH += ("bernoulli", "multinomial", "normal")
IN_PLACE = ("uniform_", "normal_", "bernoulli_", "exponential_", "random_")
SEEDED = ("default_rng", "Generator", "Philox")


def shared_draws(source: str) -> list[str]:
    """What of a module draws from, or seeds for good, a generator that it does not own."""
    found = []
    tree = ast.parse(source)
    forked = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items[0])
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            found += ["random"] if "random" in names else []
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, name = ast.unparse(node.func), node.func.attr
        own = any(keyword.arg == "generator" for keyword in node.keywords)
        if called in {f"torch.{one}" for one in TORCH} and not own:
            found.append(called)
        if name in IN_PLACE and not own:
            found.append(name)
        if called == "torch.manual_seed" and node not in forked:
            found.append(called)
        if ".random." in called and called.startswith(("np.", "numpy.")):
            found += [] if name in SEEDED and (node.args or node.keywords) else [called]
    return found


def test_every_draw_has_a_seed():
    """Shuffles without one, and streams that processes share, make no run repeatable."""
    found = {
        file.relative_to(SRC).as_posix(): what
        for file in sorted(SRC.rglob("*.py"))
        if (what := shared_draws(file.read_text(encoding="utf-8")))
    }
    # Dropout has no generator of its own in torch: its seed is set by name before each step.
    assert found.pop("stages/compute.py") == ["torch.manual_seed"]
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import shuffle",
        "np.random.shuffle(rows)",
        "np.random.default_rng()",
        "torch.randperm(5)",
        "x.uniform_(0, 1)",
        "torch.manual_seed(1)",
    ],
)
def test_a_shared_draw_would_be_found(source):
    assert shared_draws(source)


@pytest.mark.parametrize(
    "source",
    [
        "np.random.default_rng(seed)",
        "torch.randperm(5, generator=generator)",
        "with torch.random.fork_rng():\n    torch.manual_seed(1)",
    ],
)
def test_a_draw_with_a_seed_passes(source):
    assert not shared_draws(source)

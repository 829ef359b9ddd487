"""Made-up measurements and tunings, and a cache directory of the test's own."""

import itertools

import pytest

from nplus.config.tuning import Choice, Tuning, attention_under
from nplus.stages.tuning.cache import cores, this_machine
from nplus.stages.tuning.turns import compared

CHOSEN = {
    "compute.threads": 1,
    "compute.side_by_side": False,
    "compute.matmul_precision": "medium",
    "compute.allocator": "keep",
}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """`$XDG_CACHE_HOME`."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def tuning():
    """`tuning(attention=..., **changed)`: a tuning of this machine's CPU.

    Attention is `batched` where it is known and `eager` elsewhere, but under `highest`, where it is
    `sdpa`; `changed` are other values for keys, dots written as double underscores.
    """

    def build(machine=None, made="2026-11-21T10:00:00+00:00", attention="batched", **changed):
        values = CHOSEN | {key.replace("__", "."): value for key, value in changed.items()}
        choices = [Choice(key=k, value=v, default=v, why="measured") for k, v in values.items()]
        kinds = itertools.product(("highest", "medium"), ("none", "bfloat16"), (True, False))
        for precision, autocast, known in kinds:
            under = attention_under(precision, autocast, known=known)
            fast = attention if known else "eager"
            value = "sdpa" if precision == "highest" else fast
            choices.append(
                Choice(
                    key="model.attn_implementation",
                    value=value,
                    default="sdpa",
                    why="measured",
                    under=under,
                )
            )
        advice = Choice(
            key="compute.autocast", value="bfloat16", default="none", why="fast", advice=True
        )
        return Tuning(
            machine=machine or this_machine("cpu"),
            made=made,
            seconds=40.0,
            measurements=(),
            errors={"highest": 2e-7, "medium": 5e-7},
            choices=(*choices, advice),
        )

    return build


@pytest.fixture
def cell():
    """`cell(a=[1.0, 1.1], b=[...])`: the ways of one work; the first is the default."""

    def build(**times):
        return compared({k: list(v) for k, v in times.items()}, next(iter(times)))

    return build


@pytest.fixture(scope="session")
def all_cores():
    return cores()

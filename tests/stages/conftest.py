"""One whole road at the smallest size, and an online loop, run once for all of this folder."""

import shutil

import pytest
from rich.console import Console

from nplus.config import RunConfig
from nplus.recipes import recipe
from nplus.stages.road import run_road

LENGTH = 48
LOOP = {
    "rounds": 2,
    "prompts": 8,
    "samples": 4,
    "response_length": LENGTH,
    "micro_batch_size": 8,
    "piece": 3,
    "train": {
        "batch": {"batch_size": 4, "micro_batch_size": 2},
        "optim": {"learning_rate": 1e-4},
    },
}


@pytest.fixture(scope="session")
def road_config():
    """`road_config(ppo={...})`: a toy of 0.15M parameters, two or three steps a stage, changed."""
    sizes = {
        "data": {
            "max_query_tokens": 320,
            "max_response_tokens": LENGTH,
            "world": {"pretrain": 32, "train": 32, "valid": 8, "test": 6, "heldout": 4, "news": 2},
        },
        "tokenizer": {"vocab_size": 800},
        "pretrain": {"batch": {"batch_size": 16, "micro_batch_size": 8}, "epochs": 1},
        "sft": {"batch": {"batch_size": 16, "micro_batch_size": 8}},
        "sample": {"prompts": 8, "valid_prompts": 4, "temperatures": (0.7, 1.0)},
        "label": {"pairs": 16, "valid_pairs": 12},
        "reward": {"batch": {"batch_size": 8, "micro_batch_size": 4}, "normalise_rows": 16},
        "ppo": {
            "total_episodes": 12,
            "batch_size": 4,
            "micro_batch_size": 2,
            "rollout_micro_batch_size": 4,
            "save_steps": 1,
            "sampling": {"response_length": LENGTH},
        },
        "evaluate": {"max_rows": 4, "response_length": LENGTH, "temperatures": (0.7,)},
    }

    def build(**changed):
        tree = recipe("toy:tiny").model_dump()
        for name in {*sizes, *changed}:
            given = changed.get(name, {})
            if isinstance(given, dict):
                tree[name] = (tree[name] or {}) | sizes.get(name, {}) | given
            else:
                tree[name] = given
        tree["sample"]["response_length"] = LENGTH
        return RunConfig.model_validate(tree)

    return build


@pytest.fixture(scope="session")
def drive():
    """`drive(config, out)`: the road, quietly."""

    def run(config, out, **options):
        return run_road(config, out, console=Console(quiet=True), **options)

    return run


@pytest.fixture(scope="session")
def finished(road_config, drive, tmp_path_factory):
    """A finished run; tests that go on with it work on copies."""
    return drive(road_config(), tmp_path_factory.mktemp("road") / "run")


@pytest.fixture(scope="session")
def loop_config(road_config):
    """`loop_config(pairing=...)`: the smallest road with two rounds, changed."""

    def build(reward=None, **changed):
        more = {"reward": reward} if reward else {}
        config = road_config(online={**LOOP, **changed}, **more)
        temperatures = {"temperatures": (0.01, 0.7)}
        return config.model_copy(
            update={"evaluate": config.evaluate.model_copy(update=temperatures)}
        )

    return build


@pytest.fixture(scope="session")
def looped(loop_config, drive, tmp_path_factory):
    """The loop that nothing happened to; tests that go on with it work on copies."""
    return drive(loop_config(), tmp_path_factory.mktemp("loop") / "run", until="online")


@pytest.fixture
def again(looped, drive, tmp_path):
    """`again(config)`: the run of two rounds gone on with under another config, in a copy."""

    def go(config, until="online"):
        out = tmp_path / "again"
        if not out.exists():
            shutil.copytree(looped.path, out)
        return drive(config, out, until=until)

    return go

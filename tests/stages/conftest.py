"""One whole road at the smallest size, run once for all tests of this folder."""

import pytest
from rich.console import Console

from nplus.config import RunConfig
from nplus.recipes import recipe
from nplus.stages.road import run_road

LENGTH = 48


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

"""A tiny network with visible structure, and what a stage's functions are given, without a run."""

import pytest
import torch
from rich.console import Console
from transformers import GPTNeoXForCausalLM

from nplus.batches import PromptBatch
from nplus.config import RunConfig
from nplus.models.toy import toy_config
from nplus.recipes import recipe
from nplus.seeding import stream, uniform_grid
from nplus.stages.context import Context


@pytest.fixture(scope="session")
def tiny_causal():
    """`tiny_causal(seed=0, spread=0.3)`: a 0.3M GPT-NeoX of 61 tokens, EOS 0, PAD 1.

    Weights wider than at initialisation, so that attention and positions matter.
    """

    def build(seed=0, spread=0.3):
        config = toy_config("0.3M", vocab_size=61, eos_id=0, pad_id=1)
        config.initializer_range = spread
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GPTNeoXForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def prompts_of_lengths():
    """`prompts_of_lengths([3, 5])`: left-padded prompts of ordinary tokens, named p0, p1..."""

    def build(lengths, seed=0):
        width = max(lengths)
        tokens = torch.full((len(lengths), width), 1)
        mask = torch.zeros((len(lengths), width), dtype=torch.bool)
        for row, length in enumerate(lengths):
            ids = stream(seed, "prompt", row).integers(2, 61, size=length)
            tokens[row, width - length :] = torch.from_numpy(ids)
            mask[row, width - length :] = True
        return PromptBatch(tokens, mask, tuple(f"p{row}" for row in range(len(lengths))))

    return build


@pytest.fixture(scope="session")
def uniforms_for():
    """`uniforms_for(prompts, width, name)`: [B, R] sampling noise."""

    def build(prompts, width, name="noise", seed=0):
        return torch.from_numpy(uniform_grid(seed, [(name, key) for key in prompts.keys], width))

    return build


@pytest.fixture(scope="session")
def stage_context():
    """`stage_context(ppo={...}, sft={...})`: the context of a run of the tiny toy, changed."""

    def build(codec=None, **changed):
        tree = recipe("toy:tiny").model_dump()
        for name, keys in changed.items():
            tree[name] = tree[name] | keys if isinstance(keys, dict) else keys
        config = RunConfig.model_validate(tree)
        ctx = Context(config, torch.device("cpu"), Console(quiet=True), dirs={})
        if codec is not None:
            ctx.codec = codec
        return ctx

    return build


@pytest.fixture
def two_threads():
    """Two threads of torch, however many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

"""A tiny network with visible structure, and what a stage's functions are given, without a run."""

import os
import pickle
import threading
import traceback
from itertools import count
from multiprocessing import Pipe

import pytest
import torch
from rich.console import Console
from transformers import GPTNeoXForCausalLM

from nplus.batches import PromptBatch
from nplus.config import RunConfig
from nplus.distributed.topology import Topology, connected
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

    def build(codec=None, topology=None, **changed):
        tree = recipe("toy:tiny").model_dump()
        for name, keys in changed.items():
            tree[name] = (tree[name] or {}) | keys if isinstance(keys, dict) else keys
        config = RunConfig.model_validate(tree)
        ctx = Context(config, torch.device("cpu"), Console(quiet=True), {}, topology or Topology())
        if codec is not None:
            ctx.codec = codec
        return ctx

    return build


@pytest.fixture
def in_ranks(tmp_path):
    """`in_ranks(world, work)`: what `work(topology)` returns in each of `world` forked processes,
    connected by gloo. It must return what plain pickle can carry, and no tensors."""
    calls = count()

    def run(world, work):
        told = {"init_method": f"file://{tmp_path}/ranks-{next(calls)}", "world_size": world}
        pipes = []
        for rank in range(world):
            ours, theirs = Pipe(duplex=False)
            pid = os.fork()
            if pid == 0:
                _one_rank(theirs, work, {**told, "rank": rank})
            theirs.close()
            pipes.append((pid, ours))
        found = [pickle.loads(ours.recv_bytes()) for _, ours in pipes]
        for pid, _ in pipes:
            os.waitpid(pid, 0)
        for worked, what in found:
            assert worked, what
        return [what for _, what in found]

    return run


def _one_rank(pipe, work, told):
    def go():
        try:
            torch.set_num_threads(1)
            with connected(**told) as topology:
                answer = True, work(topology)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))

    # OpenMP's threads were not forked, and only a thread of our own knows that they are gone.
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    os._exit(0)


@pytest.fixture
def two_threads():
    """Two threads of torch, however many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

"""Steps of one shape: the lean path's logits; recorded on CUDA, the same again."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from nplus.engines.lean import LeanSteps, lean_network
from nplus.engines.static import GraphSteps, StaticSteps

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
NETWORKS = {
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=48, n_layer=3, n_head=6, n_positions=64)
    ),
}
ROOM = 7


def network(name, device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    return lean_network(NETWORKS[name]().to(device, dtype).eval())


def walk(steps, padded, device="cpu"):
    """Logits of each step; after the third one only some rows go on."""
    g = torch.Generator().manual_seed(1)
    tokens_BP = torch.randint(2, 61, (5, 6), generator=g).to(device)
    mask_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    if padded:
        mask_BP[0, :4] = mask_BP[3, :1] = False
    answers_BR = torch.randint(2, 61, (5, ROOM), generator=g).to(device)
    with torch.inference_mode():
        found = [steps.prefill(tokens_BP, mask_BP, ROOM).clone()]
        for r in range(ROOM):
            if r == 3:
                kept = torch.tensor([0, 2, 3], device=device)
                steps.keep(kept)
                answers_BR = answers_BR[kept]
            found.append(steps.step(answers_BR[:, r]).clone())
    return found


@pytest.fixture
def dirty_memory():
    """New memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_of_one_shape_give_the_same_logits(name, padded):
    ours, theirs = (walk(steps(network(name)), padded) for steps in (StaticSteps, LeanSteps))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_a_step_depends_on_every_column_before_it():
    one, two = (StaticSteps(network("neox")) for _ in range(2))
    tokens_BP = torch.arange(2, 8)[None]
    mask_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    with torch.inference_mode():
        for steps, first in ((one, 5), (two, 6)):
            steps.prefill(tokens_BP, mask_BP, 3)
            steps.step(torch.tensor([first]))
        assert not torch.allclose(one.step(torch.tensor([9])), two.step(torch.tensor([9])))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_step_gives_the_same_logits(name, dtype):
    net = network(name, "cuda", dtype)
    ours, theirs = (walk(steps(net), True, "cuda") for steps in (GraphSteps, StaticSteps))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3)

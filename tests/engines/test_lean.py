"""The lean path: the module's own logits step by step, or none of it."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nplus.engines import families, lean
from nplus.engines.lean import LeanSteps, lean_network
from nplus.engines.steps import PlainSteps

SIZES = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **SIZES,
}
NETWORKS = {
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    "neox, one after the other": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SHAPE, use_parallel_residual=False, attention_bias=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "llama, tied, biased": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=True)
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**SHAPE, num_key_value_heads=3, sliding_window=None)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=48, n_layer=3, n_head=6, n_positions=64, initializer_range=0.3, **SIZES)
    ),
}


def build(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype).eval()
    with torch.no_grad():  # zero biases and unit norms would hide that they are left out
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def walk(steps, tokens_BP, mask_BP, answers_BR, kept=None):
    """Log-probs of each step; after the second one only the rows `kept` go on."""
    with torch.inference_mode():
        found = [steps.prefill(tokens_BP, mask_BP, answers_BR.shape[1])]
        for r in range(answers_BR.shape[1]):
            if r == 2 and kept is not None:
                steps.keep(kept)
                answers_BR = answers_BR[kept]
            found.append(steps.step(answers_BR[:, r]))
    return [logits.float().log_softmax(-1) for logits in found]


def batch(padded=True):
    g = torch.Generator().manual_seed(1)
    tokens_BP = torch.randint(61, (4, 9), generator=g)
    mask_BP = torch.ones(4, 9, dtype=torch.bool)
    if padded:
        for row, width in enumerate((3, 0, 8, 1)):
            mask_BP[row, :width] = False
    return tokens_BP, mask_BP, torch.randint(61, (4, 6), generator=g)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_is_the_modules_own(name, padded):
    model = build(name)
    network = lean_network(model)
    assert network is not None
    kept = torch.tensor([0, 2, 3])
    ours = walk(LeanSteps(network), *batch(padded), kept)
    theirs = walk(PlainSteps(model), *batch(padded), kept)
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_is_as_near_as_bfloat16_goes(name):
    model = build(name, torch.bfloat16)
    network = lean_network(model)
    assert network is not None
    exact = walk(PlainSteps(build(name)), *batch())
    ours, theirs = (
        max(float((a - b).abs().mean()) for a, b in zip(walk(s, *batch()), exact, strict=True))
        for s in (LeanSteps(network), PlainSteps(model))
    )
    assert ours < 1.5 * theirs


def test_without_packed_weights_it_is_the_same(monkeypatch):
    model = build("neox")
    packed = walk(LeanSteps(lean_network(model)), *batch())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = lean_network(model)
    assert network.head.packed is None
    for a, b in zip(walk(LeanSteps(network), *batch()), packed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_trained_weights_are_seen():
    model = build("llama")
    before = walk(LeanSteps(lean_network(model)), *batch())
    # A fused step: it changes weights without counting up their version.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor([[5, 6]])).logits.square().sum().backward()
    optimizer.step()
    after = walk(LeanSteps(lean_network(model)), *batch())
    expected = walk(PlainSteps(model), *batch())
    assert (after[0] - before[0]).abs().max() > 0.1
    torch.testing.assert_close(after[-1], expected[-1], rtol=0, atol=5e-4)


def test_another_architecture_takes_the_plain_path():
    config = OPTConfig(hidden_size=48, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4)
    assert lean_network(OPTForCausalLM(config)) is None


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2LMHeadModel(
            GPT2Config(
                n_embd=48, n_layer=1, n_head=6, scale_attn_by_inverse_layer_idx=True, **SIZES
            )
        ),
        lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
        lambda: Qwen2ForCausalLM(
            Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        ),
    ],
)
def test_variants_that_it_does_not_compute_take_the_plain_path(model):
    assert lean_network(model()) is None


def test_a_module_that_answers_otherwise_takes_the_plain_path():
    class Capped(GPTNeoXForCausalLM):
        def forward(self, *args, **options):
            found = super().forward(*args, **options)
            found.logits = 3.0 * torch.tanh(found.logits / 3.0)
            return found

    model = Capped(GPTNeoXConfig(**SHAPE)).eval()
    assert lean_network(model) is None
    assert model.nplus_lean is False
    assert lean_network(model) is None


def test_a_layer_that_is_more_than_its_weight_takes_the_plain_path():
    class Adapted(torch.nn.Linear):
        """As an adapter would be that starts at 0."""

    model = build("llama")
    assert lean_network(model) is not None
    model.model.layers[1].self_attn.k_proj.__class__ = Adapted
    assert lean_network(model) is None


def test_where_bfloat16_cannot_be_packed_it_is_not(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not families._packs(torch.bfloat16)
    assert families._packs(torch.float32) == torch.backends.mkldnn.is_available()


def test_the_precision_of_products_is_as_before():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        walk(LeanSteps(lean_network(build("neox"))), *batch())
        assert torch.get_float32_matmul_precision() == "medium"
        with lean._many_small_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)

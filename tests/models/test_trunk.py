"""The trunk's own forward: transformers' last states and gradients, or none of it."""

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nplus.config.load import load_config
from nplus.models import trunk
from nplus.models.lm import model_inputs, response_logprobs, set_dropout, trailing_hidden
from nplus.models.scalar import ScalarModel
from nplus.models.trunk import last_states
from nplus.recipes import recipe
from nplus.stages.compute import for_training

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
NETWORKS = {
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, hidden_dropout=0.0)),
    "neox, one after the other": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SHAPE, hidden_dropout=0.0, use_parallel_residual=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**SHAPE, num_key_value_heads=3, sliding_window=None)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2)),
}


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    model.set_attn_implementation("batched")
    return model


def batch(length, padded=True):
    g = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(61, (3, length), generator=g)
    mask_BT = torch.ones(3, length, dtype=torch.bool)
    if padded:
        mask_BT[0, :4], mask_BT[2, -2:] = False, False
    return tokens_BT, mask_BT


@pytest.mark.parametrize("length", [9, 70, 71])
@pytest.mark.parametrize("width", [1, 4, 9])
@pytest.mark.parametrize("name", NETWORKS)
def test_states_and_gradients_are_the_modules_own(name, width, length):
    model = build(name)
    tokens_BT, mask_BT = batch(length)
    inputs = model_inputs(model, tokens_BT, mask_BT)
    ours = last_states(model.base_model, inputs, width)
    assert ours is not None
    theirs = model.base_model(**inputs).last_hidden_state[:, -width:]
    real = mask_BT[:, -width:]
    # transformers' own softmax and norms are in float32
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-5)
    up = torch.randn(theirs[real].shape, generator=torch.Generator().manual_seed(2)).double()
    parameters = list(model.base_model.parameters())
    for mine, its in zip(
        torch.autograd.grad((ours[real] * up).sum(), parameters),
        torch.autograd.grad((theirs[real] * up).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["neox", "llama"])
def test_columns_can_be_chosen_row_by_row(name):
    model = build(name)
    inputs = model_inputs(model, *batch(70))
    columns_BW = torch.tensor([[69, 5, 40], [0, 69, 2], [33, 67, 33]])
    ours = last_states(model.base_model, inputs, columns_BW)
    every = model.base_model(**inputs).last_hidden_state
    theirs = torch.stack([row[columns] for row, columns in zip(every, columns_BW, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    parameters = list(model.base_model.parameters())
    for mine, its in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(theirs.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["neox", "llama"])
@pytest.mark.parametrize("attention", ["batched", "eager"])
def test_checkpointed_activations_give_the_same_gradients_and_keep_less(attention, name):
    tokens_BT, mask_BT = batch(40, padded=False)
    found = {}
    for checkpoints in (False, True):
        model = build(name)
        model.set_attn_implementation(attention)
        sets = (f"compute.activation_checkpointing={checkpoints}",)
        for_training(model, load_config(recipe("toy"), sets=sets))
        kept = []

        def keep(x, kept=kept):
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = trailing_hidden(model, tokens_BT, mask_BT, 3)
        loss = (hidden * mask_BT[:, -3:, None]).square().sum()
        grads = torch.autograd.grad(loss, list(model.base_model.parameters()))
        found[checkpoints] = sum(kept), grads
    assert found[True][0] < 0.4 * found[False][0]
    for mine, its in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_padding_reaches_no_real_state():
    model = build("neox")
    tokens_BT, mask_BT = batch(9)
    with torch.no_grad():
        found = trailing_hidden(model, tokens_BT, mask_BT, 5)[0]
        alone = trailing_hidden(model, tokens_BT[:1, 4:], mask_BT[:1, 4:], 5)[0]
    torch.testing.assert_close(found, alone)


def test_under_autocast_it_is_as_near_as_bfloat16_goes():
    model = build("neox", torch.float32)
    rectangle = (*batch(70), 6)
    with torch.no_grad():
        exact, _ = response_logprobs(model, *rectangle, temperature=0.7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, _ = response_logprobs(model, *rectangle, temperature=0.7)
            model.set_attn_implementation("eager")
            theirs, _ = response_logprobs(model, *rectangle, temperature=0.7)
    real = batch(70)[1][:, -6:]
    errors = [float((x - exact)[real].abs().mean()) for x in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_a_critic_reads_its_values_from_it(monkeypatch):
    torch.manual_seed(0)
    network = GPTNeoXForSequenceClassification(
        GPTNeoXConfig(**SHAPE, num_labels=1, classifier_dropout=0.0, hidden_dropout=0.0)
    )
    network.set_attn_implementation("batched")
    critic, (tokens_BT, mask_BT) = ScalarModel(network), batch(9)
    with torch.no_grad():
        found = critic.response_values(tokens_BT, mask_BT, 3)
        assert network.base_model.nplus_last
        torch.testing.assert_close(found, critic.values(tokens_BT, mask_BT)[:, 5:8])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_attention_takes_the_modules_own(attention):
    model = build("llama")
    model.set_attn_implementation(attention)
    assert last_states(model.base_model, model_inputs(model, *batch(9)), 3) is None


def test_what_it_leaves_out_takes_the_modules_own():
    model = build("neox").train()
    inputs = model_inputs(model, *batch(9))
    assert last_states(model.base_model, inputs, 3) is not None
    set_dropout(model, 0.1)
    assert last_states(model.base_model, inputs, 3) is None
    assert last_states(model.eval().base_model, inputs, 3) is not None
    set_dropout(model.train(), 0.0)
    handle = model.base_model.layers[1].register_forward_hook(lambda *_: None)
    assert last_states(model.base_model, inputs, 3) is None
    handle.remove()

    windowed = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4))
    windowed.set_attn_implementation("batched")
    assert last_states(windowed.base_model, model_inputs(windowed, *batch(9)), 3) is None
    other = OPTForCausalLM(
        OPTConfig(hidden_size=48, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4)
    )
    assert last_states(other.base_model, {}, 3) is None


def test_a_block_that_does_otherwise_takes_the_modules_own(monkeypatch):
    model = build("llama")

    def wrong(block, states, *rest):
        return 1.01 * trunk._llama(block, states, *rest)

    monkeypatch.setitem(trunk.BLOCKS, "llama", wrong)
    assert last_states(model.base_model, model_inputs(model, *batch(9)), 3) is None
    assert model.base_model.nplus_last is False
    assert model.training

"""Parameter counts as published, memory by hand, and activations as autograd really keeps them."""

import json

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from nplus.config import ModelConfig, RunConfig
from nplus.config.load import load_config
from nplus.config.memory import (
    GIB,
    HEAD_ROWS,
    Precision,
    activation_bytes,
    head_bytes,
    memory_plan,
    trained_bytes,
)
from nplus.config.shapes import KNOWN, TOYS, Shape, from_config, neox, shape_of
from nplus.data.collate import token_batch
from nplus.models.scalar import ScalarModel
from nplus.models.toy import TOY_SIZES, build_toy
from nplus.ops import logprobs
from nplus.recipes import recipe
from nplus.stages.forwards import token_objective

FULL, MIXED = Precision(4, 4), Precision(4, 2)
TINY = neox(8, 2, 2, vocab=10)


def real_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Shapes.


@pytest.mark.parametrize(
    ("size", "published"),
    [("1b", 1_011_781_632), ("2.8b", 2_775_208_960), ("6.9b", 6_857_302_016)],
)
def test_parameters_of_pythia_are_the_published_ones(size, published):
    assert KNOWN[f"EleutherAI/pythia-{size}-deduped"].parameters == published


def test_parameters_of_smollm_are_the_published_ones():
    assert KNOWN["smollm"].parameters == 134_515_008


@pytest.mark.parametrize("size", TOYS)
def test_parameters_of_toys_are_those_of_the_networks(size):
    assert set(TOYS) == set(TOY_SIZES)
    model = build_toy(size, vocab_size=600, eos_id=0, pad_id=1, seed=0)
    shape = neox(*TOYS[size], vocab=600, tied=True)
    assert shape.parameters == real_parameters(model)
    scalar = ScalarModel.from_causal(model, pad_id=1, seed=0)
    assert shape.scalar_parameters == real_parameters(scalar)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            vocab_size=90,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        Qwen2Config(
            vocab_size=90,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        GPT2Config(vocab_size=90, n_embd=24, n_layer=3, n_head=4, n_positions=32),
    ],
    ids=lambda config: config.model_type,
)
def test_a_local_directory_tells_its_shape(config, tmp_path):
    from transformers import AutoModelForCausalLM

    config.save_pretrained(tmp_path)
    cfg = load_config(recipe("real"), sets=[f"model.model_name_or_path={tmp_path}"])
    shape = shape_of(cfg)
    assert shape is not None
    assert shape.parameters == real_parameters(AutoModelForCausalLM.from_config(config))


def test_a_shape_that_is_not_known_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}), encoding="utf-8")
    assert from_config({"model_type": "mamba"}) is None
    for name in (str(tmp_path), "org/model"):
        model = ModelConfig(model_name_or_path=name)
        assert shape_of(recipe("real").model_copy(update={"model": model})) is None


# By hand.


def test_states_of_a_trained_model():
    # 100 parameters: float32 weights, gradients, two moments.
    assert trained_bytes(100, FULL, 1) == {
        "weights": 400,
        "master weights": 0,
        "gradients": 400,
        "Adam": 800,
    }
    # Mixed over 8: bfloat16 weights whole; an eighth of 400 + 400 + 800.
    assert trained_bytes(100, MIXED, 8) == {
        "weights": 200,
        "master weights": 50,
        "gradients": 50,
        "Adam": 100,
    }


def test_activations_by_hand():
    # hidden 8, feed-forward 32: a residual of 8 in float32; 2 * 8 norms, 24 of q, k and v, 16 of
    # attention's output and 64 of the feed-forward layer in bfloat16; 2 layers, 3 * 5 tokens.
    assert activation_bytes(TINY, rows=3, tokens=5, precision=MIXED) == 15 * 2 * (
        8 * 4 + (16 + 24 + 16 + 64) * 2
    )
    # Eager: 2 heads, 5 positions, 4 + 2 bytes more per token and layer.
    eager = activation_bytes(TINY, rows=3, tokens=5, precision=MIXED, attention="eager")
    assert eager - activation_bytes(TINY, rows=3, tokens=5, precision=MIXED) == 15 * 2 * 2 * 5 * 6
    # The head: 10 words, 4 columns, 3 rows: logits in bfloat16, float32, and a float32 gradient;
    # hidden states of 8 and their gradients; a float32 gradient of the weight.
    assert head_bytes(TINY, rows=3, columns=4, precision=MIXED) == (
        3 * 4 * 10 * (2 + 4 + 4) + 3 * 4 * 8 * (4 + 4) + 10 * 8 * 4
    )


def test_logits_are_never_there_all_at_once():
    # The pieces are those that the head computes.
    assert logprobs._rows_at_a_time(50_000, torch.device("cuda")) == HEAD_ROWS
    assert logprobs._rows_at_a_time(50_000, torch.device("cpu")) <= HEAD_ROWS
    few, many = (head_bytes(TINY, rows=r, columns=512, precision=FULL) for r in (4, 8))
    assert many - few == 4 * 512 * 8 * (4 + 4)


def test_checkpointed_activations_are_every_layers_input_and_one_layer():
    few = activation_bytes(TINY, rows=3, tokens=5, precision=FULL, checkpointing=True)
    all_ = activation_bytes(TINY, rows=3, tokens=5, precision=FULL)
    inputs = 3 * 5 * TINY.layers * TINY.hidden * 4
    assert few == inputs + all_ / TINY.layers
    cfg = recipe("tldr:ppo-1b")
    less = load_config(cfg, sets=["compute.activation_checkpointing=true"])
    phases = [_plan(c)["ppo"].phases["activations"] for c in (less, cfg)]
    assert phases[0] < 0.5 * phases[1]


def test_two_processes_have_gradients_each():
    cpu = recipe("toy")
    one = load_config(cpu, sets=["compute.side_by_side=false"])
    for stage in ("sft", "reward", "ppo"):
        with_two, with_one = (_plan(cfg)[stage].states["gradients"] for cfg in (cpu, one))
        assert with_two == 2 * with_one


def test_the_cache_by_hand():
    # Pythia 1B: 16 layers, keys and values of 2048, 64 rows of 512 + 53 tokens, float32.
    cfg = recipe("tldr:ppo-1b")
    plan = memory_plan(cfg, KNOWN[cfg.model.model_name_or_path], world_size=8)
    assert plan["ppo"].phases["rollout cache"] == 2 * 16 * 2048 * 64 * 565 * 4


def test_ppo_of_6_9b_by_hand():
    # Why the paper had to offload reward model and reference at 6.9B: with them, 80 GB is not
    # enough; without them it is.
    cfg = recipe("tldr:ppo-6.9b")
    need = memory_plan(cfg, KNOWN[cfg.model.model_name_or_path], world_size=8)["ppo"]
    n = 6_857_302_016
    m = n - 50_432 * 4096 + 4096
    assert need.states == {
        "weights": 2 * (n + m),
        "master weights": (n + m) / 2,
        "gradients": (n + m) / 2,
        "Adam": n + m,
        "reference": 4 * n,
        "reward model": 4 * m,
    }
    assert need.total == sum(need.states.values()) + max(need.phases.values())
    assert need.total > 80e9
    assert need.total - need.states["reference"] - need.states["reward model"] < 80e9


def test_a_shared_critic_needs_no_second_network():
    cfg = recipe("tldr:ppo-1b")
    shape = KNOWN[cfg.model.model_name_or_path]
    shared = load_config(cfg, sets=["ppo.value=shared", "ppo.value_init=zero"])
    apart, together = (memory_plan(c, shape)["ppo"] for c in (cfg, shared))
    assert apart.states["Adam"] - together.states["Adam"] == 8 * shape.scalar_parameters
    assert together.phases["activations"] < apart.phases["activations"]


def test_a_loss_without_a_reference_keeps_none():
    cfg = recipe("tldr:dpo-1b")
    free = load_config(cfg, sets=["dpo.loss_type=simpo"])
    states = [_plan(each)["dpo"].states for each in (cfg, free)]
    assert states[0] == {**states[1], "reference": states[0]["reference"]}
    assert "reference" not in states[1]


def test_every_snapshot_is_a_policy():
    sets = ["compute.side_by_side=false", "reinforce.algorithm=rloo"]
    plain, stale = (
        load_config(recipe("toy"), sets=[*sets, f"reinforce.max_staleness={n}"]) for n in (0, 3)
    )
    states = [_plan(cfg)["reinforce"].states for cfg in (plain, stale)]
    assert states[1] == {**states[0], "snapshots": 3 * states[0]["reference"]}


def test_every_stage_that_trains_is_there():
    stages = {name: tuple(_plan(recipe(name))) for name in ("tldr:dpo-1b", "tldr:sft-1b", "real")}
    assert stages == {
        "tldr:dpo-1b": ("sft", "dpo"),
        "tldr:sft-1b": ("sft",),
        "real": ("sft", "reward", "ppo"),
    }
    assert all(need.total / GIB > 0.1 for need in _plan(recipe("toy")).values())


def _plan(cfg: RunConfig):
    shape = shape_of(cfg)
    assert shape is not None
    return memory_plan(cfg, shape)


# As autograd keeps it.


def kept_bytes(model: torch.nn.Module, tokens_BT: torch.Tensor, autocast: bool) -> int:
    """Bytes of all distinct tensors that a forward of the trunk keeps, parameters apart."""
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    alive = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        # Autocast's copies of weights are counted with the weights.
        if storage.data_ptr() not in weights and tuple(x.shape) not in shapes:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=tokens_BT)
    return sum(held.values())


@pytest.mark.parametrize(
    ("autocast", "attention"),
    [(False, "sdpa"), (True, "sdpa"), (False, "eager"), (False, "batched")],
)
def test_activations_are_about_what_autograd_keeps(autocast, attention):
    model = build_toy("1M", vocab_size=300, eos_id=0, pad_id=1, seed=0).base_model
    model.set_attn_implementation(attention)
    tokens_BT = torch.arange(4 * 80).reshape(4, 80) % 300
    found = kept_bytes(model, tokens_BT, autocast)
    shape: Shape = neox(*TOYS["1M"], vocab=300, tied=True)
    expected = activation_bytes(
        shape,
        rows=4,
        tokens=80,
        precision=MIXED if autocast else FULL,
        attention=attention,
    )
    assert expected == pytest.approx(found, rel=0.05)


def test_the_loss_keeps_no_logits():
    model = build_toy("0.3M", vocab_size=3_000, eos_id=0, pad_id=1, seed=0)
    model.set_attn_implementation("batched")
    rows = [(list(range(2, 200)), [0])] * 16
    batch = token_batch(rows, pad_id=1)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        token_objective(model, batch)
    logits = 16 * 198 * 3_000
    assert max(x.numel() for x in kept) < logits / 2
    shape = neox(*TOYS["0.3M"], vocab=3_000, tied=True)
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    expected = activation_bytes(shape, rows=16, tokens=199, precision=FULL, attention="batched")
    expected += head_bytes(shape, rows=16, columns=198, precision=FULL)
    assert sum(held.values()) < expected

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nplus.config import OptimConfig
from nplus.models.scalar import ScalarModel
from nplus.training.optim import Optimizer, schedule

SIZES = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": 61}


def lr_of(kind, step, total, **options):
    optimizer = Optimizer([("w", nn.Parameter(torch.ones(2)))], OptimConfig())
    returned = optimizer.set_factor(schedule(kind, step, total, **options))
    (group,) = optimizer.parts[0].param_groups
    assert group["lr"] == returned
    return group["lr"]


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.detail("B3")
@pytest.mark.parametrize(
    ("steps", "printed"),
    [
        (911, 2.9999910808426766e-06),
        (1450, 2.9999964793339335e-06),
        (11604, 2.9999999450274902e-06),
    ],
)
def test_the_second_cosine_rate_is_the_one_the_papers_code_printed(steps, printed):
    # Detail B3, to the last digit; printed after the first step.
    assert lr_of("cosine", 1, steps) == printed
    assert lr_of("cosine", 0, steps) == 3e-6


@pytest.mark.detail("B3")
def test_the_linear_rate_of_ppo_ends_above_zero():
    # Detail B3: 1 - (u - 1) / N in update u = N.
    assert lr_of("linear", 1952, 1953) == pytest.approx(1.5361e-9, rel=1e-5)
    assert lr_of("linear", 0, 1953) == 3e-6


def test_cosine_halves_in_the_middle_and_stays_above_zero():
    assert schedule("cosine", 500, 1000) == pytest.approx(0.5)
    assert 0 < schedule("cosine", 999, 1000) < 1e-5


def test_warm_up_climbs_in_equal_parts():
    rates = [schedule("constant", step, 100, warmup=4) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert schedule("linear", 1, 10, warmup=4) == pytest.approx(0.9 * 0.4)


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        # 1 - step / 10, over 3 + 1 steps of warm-up: ceil(0.25 * 10) = 3.
        ({"warmup_ratio": 0.25}, (0.25, 0.45, 0.6, 0.7, 0.6, 0.5)),
        ({"warmup_ratio": 0.25, "warmup_steps": 4}, (0.2, 0.36, 0.48, 0.56, 0.6, 0.5)),
    ],
)
def test_an_optimiser_follows_its_own_settings(warmup, rates):
    cfg = OptimConfig(learning_rate=1.0, lr_scheduler_type="linear", **warmup)
    optimizer = Optimizer([("w", nn.Parameter(torch.ones(2)))], cfg)
    assert [optimizer.follow(step, 10) for step in range(6)] == pytest.approx(rates)
    assert optimizer.parts[0].param_groups[0]["lr"] == pytest.approx(rates[-1])


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'cosin'; known: \['constant', 'cosine', 'linear'\]"):
        schedule("cosin", 0, 1)


# --- AdamW --------------------------------------------------------------------------------------


def test_one_adamw_step_by_hand():
    # Corrected moments of step 1 are g and g^2: the move is lr * g / (|g| + eps). At g = eps that
    # is half of lr; with eps 1e-8 it would be all of it. Decay comes first: w * (1 - lr * 0.01).
    weight = nn.Parameter(torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64))
    optimizer = Optimizer([("bias", weight)], OptimConfig(learning_rate=0.1))
    weight.grad = torch.tensor([1e-5, -3e-5, 4.0], dtype=torch.float64)
    norm = optimizer.clip()
    optimizer.step()
    expected = [2.0 * 0.999 - 0.05, -1.0 * 0.999 + 0.075, 3.0 * 0.999 - 0.1 * 4.0 / 4.00001]
    assert weight.tolist() == pytest.approx(expected, abs=1e-12)
    assert norm == pytest.approx(4.0, rel=1e-9)
    assert weight.grad is None


def test_the_second_adamw_step_by_hand():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Optimizer([("w", weight)], OptimConfig(learning_rate=0.1))
    w, m, v = 1.0, 0.0, 0.0
    for step, g in enumerate((1e-4, -2e-4, 5e-4), 1):
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * 0.01 * w
        w -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-5)
        assert weight.item() == pytest.approx(w, abs=1e-12)


@pytest.mark.detail("B2")
def test_adamw_decays_every_parameter_in_one_group(tiny_causal):
    # Detail B2: norms and biases too.
    model = tiny_causal()
    (part,) = Optimizer(model.named_parameters(), OptimConfig()).parts
    (group,) = part.param_groups
    assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 0.01, (0.9, 0.999))
    assert len(group["params"]) == len(list(model.parameters()))


def test_no_clipping_unless_asked_for():
    for limit, moved in ((None, 300.0), (1.0, 1.0)):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = Optimizer([("w", weight)], OptimConfig(max_grad_norm=limit))
        weight.grad = torch.tensor([300.0])
        assert optimizer.clip() == pytest.approx(300.0)
        optimizer.step()
        first_moment = optimizer.tensors()["0.0.exp_avg"].item()
        assert first_moment == pytest.approx(0.1 * moved, rel=1e-5)


def test_frozen_parameters_do_not_move():
    frozen, free = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = Optimizer([("frozen", frozen), ("free", free)], OptimConfig(learning_rate=0.1))
    free.grad = torch.ones(2)
    optimizer.step()
    assert frozen.tolist() == [1.0, 1.0]
    assert (free < 1.0).all()


# --- Muon ---------------------------------------------------------------------------------------


def llama(tiny_causal):
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=False,
            **SIZES,
        )
    )


def gpt2(tiny_causal):
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SIZES))


def tied_neox(tiny_causal):
    return tiny_causal()


def reward_model(tiny_causal):
    return ScalarModel.from_causal(tiny_causal(), pad_id=1, seed=0)


@pytest.mark.parametrize("build", [llama, gpt2, tied_neox, reward_model])
def test_muon_moves_the_matrices_of_the_blocks_and_nothing_else(build, tiny_causal):
    model = build(tiny_causal)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = Optimizer(model.named_parameters(), OptimConfig(name="muon")).parts
    assert isinstance(muon, torch.optim.Muon)
    by_muon, by_adamw = (
        [id(p) for group in part.param_groups for p in group["params"]] for part in (muon, adamw)
    )
    trunk = model.network.base_model if isinstance(model, ScalarModel) else model.base_model
    blocks = trunk.h if hasattr(trunk, "h") else trunk.layers
    wanted = [id(p) for p in blocks.parameters() if p.ndim == 2]
    assert sorted(by_muon) == sorted(wanted)
    # Tied embeddings are one tensor under two names: each parameter is moved exactly once.
    assert sorted(by_muon + by_adamw) == sorted({id(p) for p in model.parameters()})
    assert len(names) == len(by_muon) + len(by_adamw)


def test_the_tied_head_is_moved_once(tiny_causal):
    model = tiny_causal()
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head is embedding
    muon, adamw = Optimizer(model.named_parameters(), OptimConfig(name="muon")).parts
    moved = [p for part in (muon, adamw) for group in part.param_groups for p in group["params"]]
    assert sum(p is embedding for p in moved) == 1
    assert not any(p is embedding for p in muon.param_groups[0]["params"])


def test_each_part_keeps_its_own_peak_rate(tiny_causal):
    cfg = OptimConfig(name="muon", learning_rate=1e-3, muon_learning_rate=0.02)
    optimizer = Optimizer(tiny_causal().named_parameters(), cfg)
    assert optimizer.set_factor(0.5) == 5e-4
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.01, 5e-4]

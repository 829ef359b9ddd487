"""Networks with planted faults are named; sound ones, at every precision bound, are not."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nplus.batches import Generation, Rollout
from nplus.config import SamplingConfig
from nplus.config.load import load_config
from nplus.engines.kv import KVEngine
from nplus.models import lm
from nplus.models.lm import set_dropout, set_positions
from nplus.models.scalar import ScalarModel
from nplus.ops.responses import contains_eos
from nplus.recipes import recipe
from nplus.rollout import Scores, collect, rm_scores
from nplus.stages.doctor.bounds import LOGPROB, SCORE, precision_of
from nplus.stages.doctor.probes import (
    active_dropout,
    sampled_rows,
    sampler_gap,
    score_invariance,
    shifted_positions,
)

EOS, PAD = 0, 1
ROWS = [[5, 9, 33, EOS], [7, 8, EOS], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, EOS]]


@pytest.fixture(scope="module")
def gpt2():
    """Absolute positions: where they are shifted, it shows."""
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=61, bos_token_id=EOS,
        eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.fixture
def rolled(tiny_causal, prompts_of_lengths, uniforms_for):
    """A rollout of the tiny network, sampled at 0.7."""
    policy = tiny_causal()
    prompts = prompts_of_lengths([3, 7, 5, 9])
    sampling = SamplingConfig(temperature=0.7, response_length=6)
    scorer = ScalarModel.from_causal(policy, pad_id=PAD, seed=0).eval()

    def roll(temperature=0.7, **options):
        engine = KVEngine(policy, eos_id=EOS, pad_id=PAD)
        return collect(
            engine,
            prompts,
            replace_temperature(sampling, temperature),
            uniforms_for(prompts, 6),
            policy=policy,
            reference=policy,
            score=lambda generation: Scores.of(rm_scores(scorer, generation)),
            eos_id=EOS,
            size=4,
            **options,
        )

    return roll


def replace_temperature(sampling, temperature):
    return sampling.model_copy(update={"temperature": temperature})


# --- sampler and trainer ------------------------------------------------------------------------


def test_sampler_and_trainer_agree(rolled):
    assert sampler_gap(rolled(), "float32") is None


def test_log_probs_at_another_temperature_are_named(rolled):
    finding = sampler_gap(rolled(tempered=("reference",)), "float32")
    assert finding.name == "sampler_differs"
    assert finding.numbers["rms"] > 0.1
    assert sampler_gap(rolled(tempered=("reference",)), "bfloat16") is not None


def test_the_gap_is_the_root_mean_square_over_real_tokens():
    mask_BR = torch.tensor([[True, True, False], [True, False, False]])
    sampled_BR = torch.tensor([[-1.0, -2.0, 99.0], [-3.0, 50.0, -7.0]])
    trained_BR = torch.tensor([[-1.3, -2.0, 0.0], [-3.4, 0.0, 0.0]])
    rollout = rollout_of(mask_BR, sampled_BR, trained_BR)
    finding = sampler_gap(rollout, "float32")
    assert finding.numbers["rms"] == pytest.approx((0.25 / 3) ** 0.5, abs=1e-6)
    assert finding.numbers["mean"] == pytest.approx(0.7 / 3, abs=1e-6)
    assert finding.numbers["tokens"] == 3
    noise_BR = torch.full((2, 3), 0.9 * LOGPROB["float32"])
    assert sampler_gap(rollout_of(mask_BR, trained_BR + noise_BR, trained_BR), "float32") is None
    nan = replace(rollout, logprobs_BR=trained_BR * float("nan"))
    assert sampler_gap(nan, "bfloat16") is not None


def rollout_of(mask_BR, sampled_BR, trained_BR):
    from nplus.batches import PromptBatch

    tokens_BR = torch.full(mask_BR.shape, 5)
    prompts = PromptBatch(tokens_BR[:, :2], torch.ones(2, 2, dtype=torch.bool), ("a", "b"))
    generation = Generation(prompts, tokens_BR, mask_BR, sampled_BR)
    zeros_B = torch.zeros(2)
    ended_B = contains_eos(tokens_BR, EOS)
    return Rollout(generation, trained_BR, trained_BR, zeros_B, ended_B, zeros_B.long())


def test_rows_of_a_rollout_are_without_padding(rolled):
    generation = rolled().generation
    rows = sampled_rows(generation, 3)
    lengths = generation.sequences()[1].sum(1).tolist()
    assert min(map(len, rows)) == min(lengths)
    assert max(map(len, rows)) == max(lengths)
    for row in rows:
        assert PAD not in row[: -generation.tokens_BR.shape[1]]


# --- dropout ------------------------------------------------------------------------------------


def test_dropout_is_on_only_in_training_mode_with_a_rate(tiny_causal):
    policy = tiny_causal()
    assert active_dropout({"the policy": policy.train()}) is None
    set_dropout(policy, 0.1)
    assert active_dropout({"the policy": policy.eval()}) is None
    finding = active_dropout({"the policy": policy.train(), "the critic": tiny_causal().train()})
    assert finding.name == "dropout_active"
    assert "in the policy" in finding.said
    assert "critic" not in finding.said
    assert finding.numbers["p"] == pytest.approx(0.1)


def test_one_forgotten_module_is_enough(tiny_causal):
    policy = tiny_causal()
    layer = policy.gpt_neox.layers[1]
    layer.post_mlp_dropout.p = 0.05
    layer.post_mlp_dropout.train()
    assert active_dropout({"the policy": policy}).numbers["modules"] == 1


# --- positions ----------------------------------------------------------------------------------


def shifted(model, precision="float32"):
    return shifted_positions(model, torch.tensor(ROWS[2]), 5, pad_id=PAD, precision=precision)


def test_padding_on_the_left_changes_nothing(gpt2, tiny_causal):
    set_positions(gpt2, "real")
    assert shifted(gpt2) is None
    assert shifted(tiny_causal()) is None


def test_positions_that_count_padding_are_named(gpt2, tiny_causal):
    set_positions(gpt2, "slots")
    try:
        for precision in ("float32", "products", "bfloat16"):
            assert shifted(gpt2, precision).name == "positions_shifted"
    finally:
        set_positions(gpt2, "real")
    rotary = tiny_causal()
    set_positions(rotary, "slots")  # rotary positions are relative: only rounding differs
    assert shifted(rotary) is None


def attend_to_padding(monkeypatch):
    plain = lm.model_inputs

    def inputs(model, tokens_BT, mask_BT):
        return plain(model, tokens_BT, torch.ones_like(mask_BT))

    monkeypatch.setattr(lm, "model_inputs", inputs)
    monkeypatch.setattr("nplus.models.scalar.model_inputs", inputs)


def test_padding_that_is_attended_to_is_named(tiny_causal, monkeypatch):
    policy = tiny_causal()
    attend_to_padding(monkeypatch)
    assert shifted(policy, "bfloat16").name == "positions_shifted"


def test_probes_leave_mode_and_random_numbers_alone(tiny_causal):
    policy = tiny_causal().train()
    set_dropout(policy, 0.5)
    state = torch.get_rng_state()
    assert shifted(policy) is None
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)


# --- the reward model ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_a_score_is_that_of_the_text_alone(family, tiny_causal, gpt2):
    causal = gpt2 if family == "gpt2" else tiny_causal()
    model = ScalarModel.from_causal(causal, pad_id=PAD, seed=0).eval()
    model.set_shift(3.0)
    assert score_invariance(model, ROWS, pad_id=PAD, precision="float32") is None


def test_scores_that_see_padding_are_named(tiny_causal, monkeypatch):
    model = ScalarModel.from_causal(tiny_causal(), pad_id=PAD, seed=0).eval()
    attend_to_padding(monkeypatch)
    finding = score_invariance(model, ROWS, pad_id=PAD, precision="bfloat16")
    assert finding.name == "score_depends_on_batch"
    assert "left-padded" in finding.said


def test_scores_that_count_padding_are_named(gpt2):
    model = ScalarModel.from_causal(gpt2, pad_id=PAD, seed=0).eval()
    set_positions(model.network, "slots")
    finding = score_invariance(model, ROWS, pad_id=PAD, precision="products")
    assert finding.name == "score_depends_on_batch"


def test_scores_read_at_the_end_of_the_batch_are_named(tiny_causal, monkeypatch):
    model = ScalarModel.from_causal(tiny_causal(), pad_id=PAD, seed=0).eval()
    at_end = lambda self, tokens_BT, mask_BT: self.values(tokens_BT, mask_BT)[:, -1]  # noqa: E731
    monkeypatch.setattr(ScalarModel, "scores", at_end)
    finding = score_invariance(model, ROWS, pad_id=PAD, precision="bfloat16")
    assert "right-padded" in finding.said


def test_scores_that_are_not_numbers_are_named(tiny_causal):
    model = ScalarModel.from_causal(tiny_causal(), pad_id=PAD, seed=0).eval()
    with torch.no_grad():
        model.network.score.weight.fill_(float("nan"))
    assert score_invariance(model, ROWS, pad_id=PAD, precision="bfloat16") is not None


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "autocast", "expected"),
    [
        (("compute.matmul_precision=highest",), "none", "float32"),
        ((), "none", "products"),
        ((), "bfloat16", "bfloat16"),
        (("model.dtype=bfloat16", "compute.matmul_precision=highest"), "none", "bfloat16"),
        (("model.dtype=float64", "model.attn_implementation=sdpa"), "none", "float64"),
    ],
)
def test_the_precision_of_a_run(sets, autocast, expected):
    assert precision_of(load_config(recipe("toy:tiny"), sets=sets), autocast) == expected


def test_coarser_precision_has_a_wider_bound():
    for table in (LOGPROB, SCORE):
        assert list(table) == ["float64", "float32", "products", "bfloat16"]
        assert list(table.values()) == sorted(table.values())

"""The conformance suite, in order of bug-catching power, on a real network and stage functions.

Items held elsewhere: golden vectors (3) in `golden/test_section2.py` and `algorithms/test_ppo.py`;
query truncation, the seam, the one space and EOS survival (8) in `data/test_tldr.py`,
`data/test_tokens.py` and `data/test_prepare.py`; the pair loss at equal policies (10) in
`golden/test_section2.py`; schedules' literals (7) in `training/test_optim.py`.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nplus.rollout as rollouts
from nplus.algorithms import ppo, supervised
from nplus.batches import Generation
from nplus.config import BatchConfig, OptimConfig, PPOConfig, SamplingConfig
from nplus.config.batch_plan import batch_plan, supervised_plan
from nplus.data.collate import text_batch, token_batch
from nplus.data.tokens import train_bpe
from nplus.engines.kv import KVEngine
from nplus.models.lm import sequence_logits
from nplus.models.scalar import ScalarModel
from nplus.models.toy import build_toy
from nplus.ops.logprobs import gather_logprobs
from nplus.ops.losses import target_mask
from nplus.ops.responses import contains_eos, response_mask_BR
from nplus.records import Demonstration
from nplus.rollout import Scores, add_values, collect, logprobs_of, rm_scores
from nplus.seeding import take, uniform_grid
from nplus.stages import ppo as ppo_stage
from nplus.stages import reward as reward_stage
from nplus.training.optim import Optimizer, schedule
from nplus.training.update import update

EOS, PAD, R = 0, 1, 12
LENGTHS = [3, 9, 5, 7, 4, 9, 2, 6]
ROWS = len(LENGTHS)


@pytest.fixture(scope="module")
def policy(tiny_causal):
    """A network whose EOS is likely enough that responses end anywhere, or not at all."""
    model = tiny_causal()
    lean = torch.tensor([1.0, -1.0]).repeat(model.config.hidden_size // 2)
    with torch.no_grad():
        # The head has no bias: a direction common to all hidden states, and to the row of EOS.
        model.base_model.final_layer_norm.bias += 0.2 * lean
        model.get_output_embeddings().weight[EOS] += 0.35 * lean
    return model


@pytest.fixture(scope="module")
def reward_model(policy):
    model = ScalarModel.from_causal(policy, pad_id=PAD, seed=5).eval().requires_grad_(False)
    model.set_shift(0.375)
    return model


@pytest.fixture
def rolled(policy, reward_model, prompts_of_lengths, uniforms_for):
    """`rolled(old_logprobs=...)`: a rollout of the policy against itself as reference."""

    def collected(old_logprobs="trainer", stop="eos", temperature=0.7, size=ROWS):
        prompts = prompts_of_lengths(LENGTHS)
        sampling = SamplingConfig(response_length=R, stop=stop, temperature=temperature)
        return collect(
            KVEngine(policy, eos_id=EOS, pad_id=PAD),
            prompts,
            sampling,
            uniforms_for(prompts, R),
            policy=policy,
            reference=policy,
            score=lambda generation: Scores.of(rm_scores(reward_model, generation)),
            eos_id=EOS,
            size=size,
            old_logprobs=old_logprobs,
        )

    return collected


@pytest.fixture
def first_update(policy, reward_model, stage_context):
    """`first_update(rollout, ...)`: what the PPO stage reports of its first minibatch."""

    def trained(rollout, temperature=0.7, micro=ROWS):
        ctx = stage_context(
            ppo={
                "batch_size": ROWS,
                "micro_batch_size": micro,
                "total_episodes": ROWS,
                "num_ppo_epochs": 1,
                "sampling": {"temperature": temperature, "response_length": 48},
            }
        )
        critic, learner = reward_model.copy().requires_grad_(True), policy
        before = {name: p.clone() for name, p in learner.state_dict().items()}
        batch, metrics = ppo.credit(add_values(rollout, critic, size=8), ctx.config.ppo)
        optimizers = {
            "policy": Optimizer(learner.named_parameters(), OptimConfig()),
            "critic": Optimizer(critic.named_parameters(), OptimConfig()),
        }
        _, first = ppo_stage.train_on(batch, learner, critic, optimizers, ctx, 0)
        learner.load_state_dict(before)
        return {name: metric.value for name, metric in metrics.items()} | first

    return trained


# --- 1. the first update ------------------------------------------------------------------------


def test_item_1_the_first_update_is_an_identity(rolled, first_update):
    # Same path, same shapes: not nearly, exactly.
    found = first_update(rolled("trainer"))
    assert found["objective/kl"] == 0.0
    assert found["first_minibatch/ratio"] == 1.0
    assert found["first_minibatch/approxkl_avg"] == 0.0
    assert found["first_minibatch/clipfrac_avg"] == 0.0


def test_item_1_the_sampler_and_the_trainer_agree_in_fp32(rolled, first_update):
    # Old log-probs with a cache and step by step, new ones in one forward, padded otherwise.
    rollout = rolled("sampler")
    found = first_update(rollout, micro=2)
    assert 0 < (rollout.logprobs_BR - rollout.ref_logprobs_BR).abs().max() < 1e-4
    assert abs(found["objective/kl"]) < 1e-4
    assert abs(found["first_minibatch/ratio"] - 1.0) < 1e-5
    assert found["first_minibatch/approxkl_avg"] < 1e-9
    assert found["first_minibatch/clipfrac_avg"] == 0.0


def test_item_1_a_training_forward_without_temperature_shows(rolled, first_update):
    found = first_update(rolled("trainer"), temperature=1.0)
    assert found["first_minibatch/approxkl_avg"] > 0.01
    assert found["first_minibatch/clipfrac_avg"] > 0.05


def test_item_1_a_reference_without_temperature_shows(
    rolled, first_update, policy, reward_model, monkeypatch
):
    calls = []

    def forgetful(model, generation, temperature, shared):
        calls.append(temperature)
        untempered = len(calls) > 1  # the reference comes after the policy
        return logprobs_of(model, generation, 1.0 if untempered else temperature)

    monkeypatch.setattr(rollouts, "logprobs_of", forgetful)
    assert abs(first_update(rolled("trainer"))["objective/kl"]) > 0.1


def test_item_1_a_sampler_without_temperature_shows(rolled, first_update, monkeypatch):
    monkeypatch.setattr("nplus.engines.kv.temper", lambda logits, _: logits.float())
    assert abs(first_update(rolled("sampler"))["objective/kl"]) > 0.1


def test_item_1_dropout_shows(policy, rolled, first_update):
    def noisy(module, inputs, output):
        return torch.nn.functional.dropout(output, 0.1)

    rollout = rolled("trainer")
    hook = policy.get_input_embeddings().register_forward_hook(noisy)
    try:
        found = first_update(rollout)
    finally:
        hook.remove()
    assert found["first_minibatch/approxkl_avg"] > 1e-4


# --- 2. the critic starts as the reward model ---------------------------------------------------


@pytest.mark.detail("E3", "F1")
@pytest.mark.parametrize("stop", ["eos", "length"])
def test_item_2_the_critic_at_the_eos_is_the_reward_model(rolled, reward_model, stop):
    # Details E3, F1: V of the state after EOS, one step past it, is the score.
    rollout = rolled(stop=stop)
    valued = add_values(rollout, reward_model.copy(), size=3)
    last = rollout.generation.response_mask_BR.sum(1) - 1
    width = rollout.generation.tokens_BR.shape[1]
    inside = (last < width - 1).nonzero().flatten()
    assert len(inside) >= 3
    assert valued.value_mask_BR[inside, last[inside] + 1].all()
    after_eos = valued.values_BR[inside, last[inside] + 1]
    torch.testing.assert_close(after_eos, rollout.scores_B[inside], rtol=0.0, atol=1e-4)
    # Read one step off, the same comparison fails.
    on_eos = valued.values_BR[inside, last[inside]]
    assert (on_eos - rollout.scores_B[inside]).abs().min() > 1e-3


def test_item_2_the_critic_carries_the_shift(rolled, reward_model):
    rollout = rolled()
    shifted = reward_model.copy()
    shifted.set_shift(float(shifted.shift) + 2.0)
    plain, moved = (add_values(rollout, m, size=8) for m in (reward_model, shifted))
    difference = (plain.values_BR - moved.values_BR)[plain.value_mask_BR]
    torch.testing.assert_close(difference, torch.full_like(difference, 2.0))
    assert (moved.values_BR[~moved.value_mask_BR] == 0).all()


# --- 4. padding ---------------------------------------------------------------------------------


def test_item_4_a_reward_is_the_same_in_either_layout(rolled, reward_model):
    rollout = rolled()
    tokens, mask = rollout.generation.sequences()
    alone = []
    for row_tokens, row_mask in zip(tokens, mask, strict=True):
        ids = row_tokens[row_mask].unsqueeze(0)
        wide = torch.cat([ids, torch.full((1, 5), PAD)], dim=1)  # right-padded, as in training
        alone.append(reward_model.scores(wide, torch.arange(wide.shape[1])[None] < ids.shape[1]))
    torch.testing.assert_close(rollout.scores_B, torch.cat(alone), rtol=0.0, atol=1e-4)


# --- 5. EOS cases -------------------------------------------------------------------------------

ENDS = {
    "at 0": [EOS, 7, 8, 9, 7, 8],
    "inside": [7, 8, EOS, 9, 7, 8],
    "two": [7, EOS, 8, EOS, 9, 7],
    "last": [7, 8, 9, 7, 8, EOS],
    "absent": [7, 8, 9, 7, 8, 9],
}


@pytest.fixture
def consequences(policy, reward_model, prompts_of_lengths, stage_context):
    """Everything that a generation leads to: scores, credit and the weights after an update."""

    def follow(rows):
        tokens = torch.tensor(rows)
        prompts = prompts_of_lengths([4, 2, 6, 3, 5][: len(rows)])
        mask = response_mask_BR(tokens, EOS)
        generation = Generation(prompts, tokens, mask, torch.zeros(tokens.shape))
        rollout = rollouts.Rollout(
            generation=generation,
            logprobs_BR=logprobs_of(policy, generation, 0.7) - 0.1 * mask,
            ref_logprobs_BR=logprobs_of(policy, generation, 1.3),
            scores_B=rm_scores(reward_model, generation),
            has_eos_B=contains_eos(tokens, EOS),
            failed_B=torch.zeros(len(rows), dtype=torch.long),
        )
        ctx = stage_context(
            ppo={"batch_size": 5, "micro_batch_size": 1, "total_episodes": 5, "num_ppo_epochs": 1}
        )
        learner, critic = policy, reward_model.copy().requires_grad_(True)
        before = {name: p.clone() for name, p in learner.state_dict().items()}
        batch, metrics = ppo.credit(add_values(rollout, critic, size=5), ctx.config.ppo)
        optimizers = {
            "policy": Optimizer(learner.named_parameters(), OptimConfig(learning_rate=1e-3)),
            "critic": Optimizer(critic.named_parameters(), OptimConfig(learning_rate=1e-3)),
        }
        trained, _ = ppo_stage.train_on(batch, learner, critic, optimizers, ctx, 0)
        after = {n: p.clone() for n, p in [*learner.named_parameters(), *critic.named_parameters()]}
        learner.load_state_dict(before)
        numbers = {name: metric.value for name, metric in (metrics | trained).items()}
        return rollout, batch, numbers, after

    return follow


@pytest.mark.detail("F2")
def test_item_5_tokens_after_the_eos_influence_nothing(consequences):
    rows = list(ENDS.values())
    first = [row.index(EOS) if EOS in row else len(row) for row in rows]
    other = [
        [*row[: end + 1], *[33, EOS, 44, PAD, 55, 2][: max(0, len(row) - end - 1)]]
        for row, end in zip(rows, first, strict=True)
    ]
    assert [a != b for a, b in zip(rows, other, strict=True)] == [True] * 3 + [False] * 2
    rollout, batch, numbers, after = consequences(rows)
    rollout2, batch2, numbers2, after2 = consequences(other)
    assert torch.equal(rollout.scores_B, rollout2.scores_B)
    for name in ("old_logprobs_BR", "old_values_BR", "advantages_BR", "returns_BR"):
        assert torch.equal(getattr(batch, name), getattr(batch2, name)), name
    assert numbers == numbers2
    assert [name for name in after if not torch.equal(after[name], after2[name])] == []


def test_item_5_the_eos_itself_influences_everything(consequences):
    rows = list(ENDS.values())
    moved = [*rows[:1], [7, 8, 9, EOS, 7, 8], *rows[2:]]
    rollout, batch, numbers, after = consequences(rows)
    rollout2, batch2, numbers2, after2 = consequences(moved)
    assert rollout.scores_B[1] != rollout2.scores_B[1]
    assert torch.equal(rollout.scores_B[2:], rollout2.scores_B[2:])
    assert not torch.equal(batch.returns_BR[1], batch2.returns_BR[1])
    assert numbers != numbers2
    assert any(not torch.equal(after[name], after2[name]) for name in after)


@pytest.mark.detail("E8", "F2", "F4")
def test_item_5_masks_and_scores_of_the_five_cases(consequences):
    rollout, batch, numbers, _ = consequences(list(ENDS.values()))
    assert batch.response_mask_BR.sum(1).tolist() == [1, 3, 2, 6, 6]
    assert batch.value_mask_BR.sum(1).tolist() == [2, 4, 3, 6, 6]
    assert rollout.has_eos_B.tolist() == [True, True, True, True, False]
    assert numbers["val/eos_rate"] == 0.8
    # Details E8, F4: the last return is what remains after the last reward: the score and its KL.
    penalised = torch.cat([rollout.scores_B[:4], torch.tensor([-1.0])])
    kl = rollout.logprobs_BR - rollout.ref_logprobs_BR
    slots = torch.tensor([1, 3, 2, 5, 5])
    rewards = penalised - 0.05 * torch.where(slots == 5, kl[:, 5], 0.0)
    found = batch.returns_BR[torch.arange(5), slots]
    torch.testing.assert_close(found, rewards, rtol=0.0, atol=1e-5)


# --- 6. SFT -------------------------------------------------------------------------------------


def sft_batch():
    return token_batch([([4, 5], [3, EOS]), ([4], [EOS])], pad_id=PAD)


def probable(tokens, probabilities, vocab=6):
    """Logits whose column t - 1 gives token t of a row `probabilities[t]`; the rest is shared."""
    logits = torch.zeros(*tokens.shape, vocab)
    for b, row in enumerate(probabilities):
        for t, p in row.items():
            logits[b, t - 1] = math.log((1 - p) / (vocab - 1))
            logits[b, t - 1, tokens[b, t]] = math.log(p)
    return logits


CHANCES = [{1: 0.5, 2: 0.25, 3: 0.125}, {1: 0.5}]
"""Row 0: a query token, a response token and EOS; row 1: only EOS can be predicted."""


def sft_loss(logits, batch):
    _, loss = supervised.objective(logits, batch).terms["train"]
    return float(loss.sum.detach() / loss.count)


def test_item_6_sft_loss_literal():
    # (1 + 2 + 3 + 1) ln 2 over four targets: prompt and EOS count, the two PADs of row 1 do not.
    batch = sft_batch()
    assert supervised.counts(batch) == {"train": 4.0}
    loss = sft_loss(probable(batch.tokens_BT, CHANCES), batch)
    assert loss == pytest.approx(7 / 4 * math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("row", "target", "better"),
    [(0, 1, "prompt"), (0, 2, "response"), (0, 3, "eos"), (1, 1, "eos of the short row")],
)
def test_item_6_every_target_counts_once(row, target, better):
    batch = sft_batch()
    chances = [dict(each) for each in CHANCES]
    chances[row][target] *= 0.5
    loss = sft_loss(probable(batch.tokens_BT, chances), batch)
    assert loss == pytest.approx(8 / 4 * math.log(2), rel=1e-6), better


def test_item_6_padding_is_no_target_and_no_input(tiny_causal):
    batch, model = sft_batch(), tiny_causal()
    assert not (target_mask(batch.mask_BT, batch.loss_mask_BT) & ~batch.mask_BT).any()
    junk = replace(batch, tokens_BT=batch.tokens_BT.masked_fill(~batch.mask_BT, 44))
    losses = [sft_loss(sequence_logits(model, b.tokens_BT, b.mask_BT), b) for b in (batch, junk)]
    assert losses[0] == losses[1]
    logits = torch.randn(2, 4, 6)
    logits[1, 1:] = math.nan
    assert math.isfinite(sft_loss(logits, batch))


@pytest.mark.detail("C2", "G4")
def test_item_6_micro_batches_of_one_row_as_in_the_paper():
    # Details C2, G4: a mean of micro-batch means gives (2 + 1) / 2 ln 2, the token mean 7/4 ln 2.
    for normalise, expected in (("micro", 1.5), ("global", 1.75)):
        factor = torch.nn.Parameter(torch.ones(1))
        optimizer = Optimizer([("f", factor)], OptimConfig(adam_beta1=0.0))
        micros = [sft_batch().rows(torch.tensor([row])) for row in range(2)]

        def objective(micro, factor=factor):
            row = 0 if int(micro.mask_BT.sum()) == 4 else 1
            found = supervised.objective(probable(micro.tokens_BT, [CHANCES[row]]), micro)
            weight, loss = found.terms["train"]
            return replace(found, terms={"train": (weight, replace(loss, sum=loss.sum * factor))})

        update(
            micros,
            counts=supervised.counts,
            objectives=[objective],
            optimizers=[optimizer],
            normalise=normalise,
        )
        descended = optimizer.tensors()["0.0.exp_avg"].item()
        assert descended == pytest.approx(expected * math.log(2), rel=1e-6)


def test_item_6_the_tokenizers_pad_is_not_its_eos(words):
    tokens, mask = text_batch(words, [("Cat?", "Yes."), ("Dog and cat?", "No.")])
    assert words.pad_id != words.eos_id
    ends = mask.sum(1) - 1
    assert tokens[torch.arange(2), ends].tolist() == [words.eos_id] * 2
    assert (tokens[~mask] == words.pad_id).all()


# --- 7. step counts -----------------------------------------------------------------------------


@pytest.mark.detail("B3", "G1")
def test_item_7_step_counts_and_the_second_rate():
    # Details B3, G1, section 3.
    cases = [
        (116_722, 128, 911, 2.9999910808426766e-06),
        (92_832, 64, 1450, 2.9999964793339335e-06),
    ]
    for rows, batch_size, steps, rate in cases:
        plan = supervised_plan(BatchConfig(batch_size=batch_size, micro_batch_size=1), rows=rows)
        assert plan.steps == steps
        assert 3e-6 * schedule("cosine", 1, plan.steps) == rate
    plan = batch_plan(PPOConfig(), world_size=8)
    assert (plan.updates, plan.optimiser_steps, plan.episodes_used) == (1953, 7812, 999_936)
    assert (plan.local_rows, plan.micro_batches) == (64, 4)


# --- 9. the demonstrations' mean ----------------------------------------------------------------


@pytest.fixture(scope="module")
def words():
    return train_bpe(["Cat? Yes. Dog and cat? No. The lamp broke, nobody said why. TL;DR:"], 300)


@pytest.fixture(scope="module")
def demonstrations():
    return [
        Demonstration(f"d{n}", f"POST: cat {'and dog ' * (n % 5)}TL;DR:", f"Lamp {n} broke.")
        for n in range(12)
    ]


@pytest.mark.detail("D5")
def test_item_9_demonstrations_average_zero_and_still_do_after_loading(
    words, demonstrations, stage_context, tmp_path
):
    causal = build_toy("0.3M", vocab_size=words.size, eos_id=0, pad_id=1, seed=2)
    model = ScalarModel.from_causal(causal, pad_id=words.pad_id, seed=3).eval()
    ctx = stage_context(codec=words, reward={"normalise_rows": 100})
    ctx.data = SimpleNamespace(demonstrations=lambda split: demonstrations)

    def scores(model):
        texts = [(d.query, d.response) for d in demonstrations]
        return model.scores(*text_batch(words, texts)).double()

    with torch.no_grad():
        raw = scores(model)
        assert abs(float(raw.mean())) > 0.01
        told = reward_stage.normalise(model, ctx)
        normalised = scores(model)
        model.save(tmp_path / "rm", words.tokenizer)
        loaded = scores(ScalarModel.load(tmp_path / "rm").eval())
    assert abs(float(normalised.mean())) < 1e-6
    assert abs(float(loaded.mean())) < 1e-3
    torch.testing.assert_close(loaded, normalised, rtol=0.0, atol=1e-4)
    # Shifted only, not scaled (Detail D5).
    torch.testing.assert_close(normalised, raw - raw.mean(), rtol=0.0, atol=1e-6)
    assert told["shift"] == pytest.approx(float(raw.mean()), abs=1e-6)
    assert told["demonstration_std"] == pytest.approx(float(raw.std()), rel=1e-4)
    # A second pass finds nothing left to shift.
    assert reward_stage.normalise(model, ctx)["shift"] == pytest.approx(told["shift"], abs=1e-6)


def test_item_9_only_so_many_demonstrations_are_taken(words, demonstrations, stage_context):
    causal = build_toy("0.3M", vocab_size=words.size, eos_id=0, pad_id=1, seed=2)
    model = ScalarModel.from_causal(causal, pad_id=words.pad_id, seed=3).eval()
    ctx = stage_context(codec=words, reward={"normalise_rows": 3})
    ctx.data = SimpleNamespace(demonstrations=lambda split: demonstrations)
    reward_stage.normalise(model, ctx)
    texts = [(d.query, d.response) for d in demonstrations[:3]]
    with torch.no_grad():
        assert abs(float(model.scores(*text_batch(words, texts)).mean())) < 1e-6


@pytest.mark.detail("E6")
def test_gathered_log_probs_are_those_of_the_right_columns(policy, rolled):
    # Detail E6, with an oracle of its own: one growing prefix at a time, no padding.
    rollout = rolled("trainer")
    generation = rollout.generation
    for row in (1, 4):
        prompt = generation.prompts.tokens_BP[row][generation.prompts.mask_BP[row]]
        length = int(generation.response_mask_BR[row].sum())
        for r in range(length):
            prefix = torch.cat([prompt, generation.tokens_BR[row, :r]]).unsqueeze(0)
            with torch.no_grad():
                logits = policy(input_ids=prefix).logits[:, -1]
            token = generation.tokens_BR[row, r].view(1)
            expected = gather_logprobs(logits / 0.7, token)
            found = rollout.logprobs_BR[row, r]
            torch.testing.assert_close(found, expected[0], rtol=0.0, atol=1e-4)


@pytest.mark.detail("B5")
@pytest.mark.parametrize("world", [2, 8])
def test_item_11_ranks_that_share_an_order_cover_the_data_once(world):
    # Q1: with a permutation of its own per rank an epoch would cover about 1 - (1 - 1/world)^world.
    rows, batch = 96, 16
    steps = [take(7, "reward", rows, step * batch, batch) for step in range(rows // batch)]
    local = batch // world
    seen = [
        set(np.concatenate([order[rank * local :][:local] for order in steps]).tolist())
        for rank in range(world)
    ]
    assert sum(map(len, seen)) == rows
    assert set().union(*seen) == set(range(rows))


@pytest.mark.detail("B5")
def test_item_11_ranks_draw_different_samples():
    # Ranks hold different prompts, and noise is named by the prompt: no two rows are alike.
    keys = [f"p{n}" for n in range(16)]
    whole = uniform_grid(7, [("ppo rollout 0", key, 0) for key in keys], 5)
    by_rank = [
        uniform_grid(7, [("ppo rollout 0", key, 0) for key in keys[rank::2]], 5) for rank in (0, 1)
    ]
    for rank in (0, 1):
        assert np.array_equal(by_rank[rank], whole[rank::2])
    assert len(np.unique(whole, axis=0)) == len(keys)

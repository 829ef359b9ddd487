"""Each stage's own loop learns something trivial, in seconds."""

import pytest
import torch

from nplus.algorithms import ppo
from nplus.config import OptimConfig, SamplingConfig
from nplus.data.collate import PairRow, pair_batch, token_batch
from nplus.engines.kv import KVEngine
from nplus.models import scalar as scalar_module
from nplus.models.scalar import ScalarModel
from nplus.records import InputError
from nplus.rollout import Scores, add_values, collect
from nplus.runs import StageDir
from nplus.seeding import stream
from nplus.stages import ppo as ppo_stage
from nplus.stages import reward as reward_stage
from nplus.stages import sft as sft_stage
from nplus.training.optim import Optimizer

EOS, PAD, TOKEN = 0, 1, 7


class Ids:
    """What the training loops need of a codec."""

    eos_id, pad_id = EOS, PAD


def words(name, index, size):
    """Ordinary tokens without TOKEN."""
    return stream(0, name, index).integers(8, 61, size=size).tolist()


@pytest.fixture
def where(tmp_path):
    return StageDir(tmp_path)


# --- reward model -------------------------------------------------------------------------------


def with_a_token(n):
    """The chosen response holds TOKEN somewhere; lengths are alike."""
    query, chosen, rejected = (words(f"token {what}", n, 4) for what in "abc")
    chosen[n % 4] = TOKEN
    return PairRow(query, [*chosen, EOS], [*rejected, EOS])


def longer(n):
    query = words("length q", n, 3)
    short, long = words("length s", n, 2 + n % 3), words("length l", n, 6 + n % 3)
    return PairRow(query, [*long, EOS], [*short, EOS])


@pytest.mark.detail("D2")
@pytest.mark.parametrize("layout", ["separate", "shared"])
@pytest.mark.parametrize("pair", [with_a_token, longer])
def test_a_reward_model_separates_a_trivial_preference(
    pair, layout, tiny_causal, stage_context, where
):
    ctx = stage_context(
        codec=Ids(),
        reward={
            "epochs": 4,
            "layout": layout,
            "optim": {"learning_rate": 2e-3},
            "batch": {"batch_size": 16, "micro_batch_size": 16},
        },
    )
    model = ScalarModel.from_causal(tiny_causal(spread=0.02), pad_id=PAD, seed=0)
    held = pair_batch([pair(n) for n in range(1000, 1100)], pad_id=PAD)

    @torch.no_grad()
    def accuracy():
        chosen, rejected = model.eval().scores(*held.stacked()).chunk(2)
        return float((chosen > rejected).float().mean())

    before = accuracy()
    reward_stage.train(model, [pair(n) for n in range(160)], where, ctx)
    assert accuracy() >= 0.97
    assert before < 0.9
    rows = [row["metrics"] for row in where.journal_rows()]
    assert 0.5 < rows[0]["loss/train"] < 0.9  # Detail D2: near ln 2 at first
    assert rows[-1]["loss/train"] < 0.2


def reward_journal(layout, rows, tiny_causal, stage_context, where, **batch):
    ctx = stage_context(
        codec=Ids(),
        reward={
            "layout": layout,
            "optim": {"learning_rate": 1e-3},
            "batch": {"batch_size": 8, "micro_batch_size": 4, **batch},
        },
    )
    model = ScalarModel.from_causal(tiny_causal(spread=0.02), pad_id=PAD, seed=0)
    reward_stage.train(model, rows, where, ctx)
    return [row["metrics"] for row in where.journal_rows()], model


def test_sharing_a_query_changes_nothing_but_the_work(tiny_causal, stage_context, tmp_path):
    # One pair a query: both layouts take the same pairs in the same order.
    rows = [with_a_token(n) for n in range(40)]
    found = []
    for layout in ("separate", "shared"):
        (tmp_path / layout).mkdir()
        where = StageDir(tmp_path / layout)
        found.append(reward_journal(layout, rows, tiny_causal, stage_context, where))
    for apart, together in zip(found[0][0][:1], found[1][0][:1], strict=True):
        for name in ("loss/train", "accuracy", "margin", "grad_norm"):
            assert together[name] == pytest.approx(apart[name], rel=1e-3, abs=1e-5), name
    # Rounding grows from step to step.
    losses = [[row["loss/train"] for row in rows] for rows, _ in found]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_pairs_of_a_query_are_read_in_the_same_step(tiny_causal, stage_context, where, monkeypatch):
    seen = []
    collate = reward_stage.shared_pair_batch
    monkeypatch.setattr(
        reward_stage,
        "shared_pair_batch",
        lambda rows, **options: seen.append(rows) or collate(rows, **options),
    )
    rows = [with_a_token(n % 10)._replace(chosen=[n % 7 + 10, EOS]) for n in range(40)]
    reward_journal("shared", rows, tiny_causal, stage_context, where, micro_batch_size=8)
    steps = [[tuple(row.query) for row in batch] for batch in seen]
    assert [len(step) for step in steps] == [8] * 5
    assert all(len(set(step)) <= 3 for step in steps)  # 4 pairs a query, 8 pairs a step


def test_a_network_that_mixes_responses_is_refused(tiny_causal, stage_context, where, monkeypatch):
    inputs = scalar_module.shared_inputs

    def blind(model, batch):
        found = inputs(model, batch)
        return {**found, "attention_mask": torch.zeros_like(found["attention_mask"])}

    monkeypatch.setattr(scalar_module, "shared_inputs", blind)
    rows = [with_a_token(n) for n in range(16)]
    with pytest.raises(InputError, match=r"set reward\.layout=separate"):
        reward_journal("shared", rows, tiny_causal, stage_context, where)


# --- SFT ----------------------------------------------------------------------------------------


def test_sft_learns_eight_rows_by_heart(
    tiny_causal, stage_context, where, prompts_of_lengths, uniforms_for
):
    prompts = prompts_of_lengths([3, 5, 4, 6, 3, 5, 4, 6])
    queries = [
        row[mask].tolist() for row, mask in zip(prompts.tokens_BP, prompts.mask_BP, strict=True)
    ]
    responses = [[*words("sft", n, 3 + n % 3), EOS] for n in range(8)]
    rows = list(zip(queries, responses, strict=True))
    ctx = stage_context(codec=Ids())
    model = tiny_causal(spread=0.02)
    sft_stage.train(
        model,
        rows,
        where,
        ctx,
        name="sft",
        epochs=80,
        optim=OptimConfig(learning_rate=5e-3),
        batch=ctx.config.sft.batch.model_copy(update={"batch_size": 8, "micro_batch_size": 8}),
        save_steps=0,
        pad_id=PAD,
        loss_on="response",
    )
    losses = [row["metrics"]["loss/train"] for row in where.journal_rows()]
    assert losses[0] > 3.5  # ln 61 = 4.1
    assert losses[-1] < 0.05
    sampling = SamplingConfig(temperature=0.01, response_length=8)
    generation = KVEngine(model, eos_id=EOS, pad_id=PAD).generate(
        prompts, sampling, uniforms_for(prompts, 8)
    )
    said = [
        row[mask].tolist()
        for row, mask in zip(generation.tokens_BR, generation.response_mask_BR, strict=True)
    ]
    assert said == responses
    batch = token_batch(rows, pad_id=PAD)
    assert int(batch.mask_BT.sum()) == sum(len(q) + len(r) for q, r in rows)


# --- PPO ----------------------------------------------------------------------------------------


def rule(generation):
    """[B] 1 for a response that says TOKEN, else 0."""
    said = (generation.tokens_BR == TOKEN) & generation.response_mask_BR
    return said.any(1).float()


@pytest.fixture
def trained(tiny_causal, stage_context, prompts_of_lengths, uniforms_for):
    """`trained(score, kl_coef)`: the rollout metrics of each update of a short PPO run."""

    def run(score, kl_coef, updates=20, rows=32, width=6):
        ctx = stage_context(
            ppo={
                "batch_size": rows,
                "micro_batch_size": rows,
                "total_episodes": rows * updates,
                "num_ppo_epochs": 4,
                "kl_coef": kl_coef,
                "missing_eos_penalty": None,
                "sampling": {"temperature": 1.0, "response_length": 48},
            }
        )
        cfg = ctx.config.ppo
        policy, reference = (tiny_causal(spread=0.05) for _ in range(2))
        critic = ScalarModel.from_causal(policy, pad_id=PAD, seed=1)
        optim = OptimConfig(learning_rate=3e-3)
        optimizers = {
            "policy": Optimizer(policy.named_parameters(), optim),
            "critic": Optimizer(critic.named_parameters(), optim),
        }
        engine = KVEngine(policy, eos_id=EOS, pad_id=PAD)
        told = []
        for step in range(updates):
            prompts = prompts_of_lengths([2 + n % 3 for n in range(rows)], seed=step)
            rollout = collect(
                engine,
                prompts,
                SamplingConfig(temperature=1.0, response_length=width),
                uniforms_for(prompts, width, f"learning {step}"),
                policy=policy,
                reference=reference,
                score=lambda generation: Scores.of(score(generation)),
                eos_id=EOS,
                size=rows,
            )
            batch, metrics = ppo.credit(add_values(rollout, critic, size=rows), cfg)
            ppo_stage.train_on(batch, policy, critic, optimizers, ctx, step)
            told.append({name: metric.value for name, metric in metrics.items()})
        return told

    return run


def mean_of(rows, name):
    return sum(row[name] for row in rows) / len(rows)


def test_ppo_finds_the_rewarded_token(trained):
    told = trained(rule, kl_coef=0.02)
    before, after = mean_of(told[:3], "objective/scores"), mean_of(told[-3:], "objective/scores")
    assert before < 0.3
    assert after > 0.8
    assert told[0]["objective/kl"] == 0.0
    # Saying one token in six costs ln 61 at most; certainty about all six would cost 25.
    assert 0.5 < mean_of(told[-3:], "objective/kl") < 12.0


def test_a_high_price_on_kl_holds_the_policy(trained):
    cheap, dear = (trained(rule, kl_coef=price, updates=10)[-3:] for price in (0.02, 1.0))
    assert mean_of(dear, "objective/kl") < 0.5 * mean_of(cheap, "objective/kl")
    assert mean_of(dear, "objective/scores") < mean_of(cheap, "objective/scores") - 0.2

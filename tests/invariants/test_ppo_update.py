"""One PPO update gives the same gradient whatever micro-batches, row order and padding."""

from dataclasses import replace

import pytest
import torch

from nplus.algorithms import ppo
from nplus.batches import PPOBatch, PromptBatch
from nplus.config import SamplingConfig
from nplus.engines.kv import KVEngine
from nplus.models.scalar import ScalarModel
from nplus.rollout import Scores, add_values, collect, generate, trimmed
from nplus.seeding import epoch_order
from nplus.stages import ppo as ppo_stage
from nplus.training.optim import Optimizer

EOS, PAD, R = 0, 1, 9
LENGTHS = [3, 8, 5, 2, 7, 4, 6, 5]


class Watched(Optimizer):
    """Keeps the gradients that its last step was taken with."""

    def step(self):
        self.gradients = torch.cat([p.grad.flatten().clone() for p in self.parameters])
        super().step()


@pytest.fixture(scope="module")
def models(tiny_causal):
    """Policy, reference and a reward model, each its own network."""
    policy = tiny_causal()
    lean = torch.tensor([1.0, -1.0]).repeat(policy.config.hidden_size // 2)
    with torch.no_grad():  # EOS likely enough for ragged responses
        policy.base_model.final_layer_norm.bias += 0.2 * lean
        policy.get_output_embeddings().weight[EOS] += 0.35 * lean
    reward_model = ScalarModel.from_causal(tiny_causal(2), pad_id=PAD, seed=5)
    return policy, tiny_causal(1), reward_model


@pytest.fixture
def rollout_of(models, uniforms_for):
    policy, reference, reward_model = models

    def collected(prompts, size=8):
        sampling = SamplingConfig(response_length=R)
        return collect(
            KVEngine(policy, eos_id=EOS, pad_id=PAD),
            prompts,
            sampling,
            uniforms_for(prompts, R),
            policy=policy,
            reference=reference,
            score=lambda generation: Scores.of(
                reward_model.scores(*generation.sequences()).detach()
            ),
            eos_id=EOS,
            size=size,
        )

    return collected


@pytest.fixture
def gradients(models, stage_context):
    """`gradients(batch, micro=...)`: of policy and critic, in one optimiser step."""

    def of(batch: PPOBatch, micro=8, normalise="global"):
        ctx = stage_context(
            ppo={
                "batch_size": 8,
                "micro_batch_size": micro,
                "total_episodes": 8,
                "num_ppo_epochs": 1,
                "normalise": normalise,
            }
        )
        policy, critic = models[0], models[2].copy()
        before = {name: p.clone() for name, p in policy.state_dict().items()}
        optimizers = {
            name: Watched(model.named_parameters(), ctx.config.ppo.optim)
            for name, model in (("policy", policy), ("critic", critic))
        }
        ppo_stage.train_on(batch, policy, critic, optimizers, ctx, 0)
        policy.load_state_dict(before)
        return torch.cat([optimizer.gradients for optimizer in optimizers.values()])

    return of


@pytest.fixture
def batch_of(models, stage_context):
    cfg = stage_context().config.ppo
    return lambda rollout, size=8: ppo.credit(add_values(rollout, models[2], size=size), cfg)[0]


def same(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5 * scale)


def differ(found, expected):
    return float((found - expected).abs().max()) > 1e-2 * float(expected.abs().max())


@pytest.fixture
def prompts(prompts_of_lengths):
    return prompts_of_lengths(LENGTHS)


@pytest.mark.detail("G4")
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches(micro, rollout_of, batch_of, gradients, prompts):
    batch = batch_of(rollout_of(prompts))
    assert len(set(batch.response_mask_BR.sum(1).tolist())) > 2
    same(gradients(batch, micro=micro), gradients(batch))
    # Detail G4: the paper's normaliser does depend on them.
    assert differ(gradients(batch, micro=micro, normalise="micro"), gradients(batch))


def test_row_order(rollout_of, batch_of, gradients, prompts):
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    batch, other = (batch_of(rollout_of(p)) for p in (prompts, prompts.rows(order)))
    assert torch.equal(other.response_tokens_BR, batch.response_tokens_BR[order])
    same(gradients(other, micro=2), gradients(batch, micro=2))


def test_prompt_padding(rollout_of, batch_of, gradients, prompts):
    wide = PromptBatch(
        torch.cat([torch.full((8, 11), PAD), prompts.tokens_BP], dim=1),
        torch.cat([torch.zeros((8, 11), dtype=torch.bool), prompts.mask_BP], dim=1),
        prompts.keys,
    )
    batch, other = (batch_of(rollout_of(p)) for p in (prompts, wide))
    assert torch.equal(other.response_tokens_BR, batch.response_tokens_BR)
    same(gradients(other), gradients(batch))


def test_response_padding(rollout_of, batch_of, gradients, prompts):
    batch = batch_of(rollout_of(prompts))
    pads = {"tokens_BT": PAD, "response_tokens_BR": PAD}
    wide = {}
    for name in PPOBatch.__dataclass_fields__:
        value = getattr(batch, name)
        extra = value.new_full((8, 6), pads.get(name, 0))
        wide[name] = torch.cat([value, extra], dim=1)
    same(gradients(replace(batch, **wide)), gradients(batch))


@pytest.mark.parametrize("size", [1, 3])
def test_pieces_of_a_rollout(size, rollout_of, batch_of, prompts):
    whole, pieces = rollout_of(prompts), rollout_of(prompts, size=size)
    assert torch.equal(pieces.generation.tokens_BR, whole.generation.tokens_BR)
    batch, other = batch_of(whole), batch_of(pieces, size=size)
    for name in ("old_logprobs_BR", "old_values_BR", "advantages_BR", "returns_BR"):
        expected = getattr(batch, name)
        torch.testing.assert_close(getattr(other, name), expected, rtol=0.0, atol=1e-4)


@pytest.mark.detail("G1")
def test_every_row_is_used_once_an_epoch(rollout_of, batch_of, prompts, stage_context):
    # Detail G1.
    batch = batch_of(rollout_of(prompts))
    numbers = torch.arange(8.0).unsqueeze(1).expand_as(batch.returns_BR)
    numbered = replace(batch, returns_BR=numbers.clone())
    changed = {"batch_size": 8, "num_mini_batches": 2, "micro_batch_size": 2, "total_episodes": 8}
    cfg = stage_context(ppo=changed | {"num_ppo_epochs": 3}).config.ppo
    minibatches = list(ppo_stage.minibatches(numbered, cfg, 1, 0))
    assert [[len(micro) for micro in micros] for micros in minibatches] == [[2, 2]] * 6
    rows = [[int(r) for m in micros for r in m.returns_BR[:, 0]] for micros in minibatches]
    epochs = [rows[i] + rows[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({frozenset(rows[i]) for i in (0, 2, 4)}) > 1  # a fresh permutation each time
    other = list(ppo_stage.minibatches(numbered, cfg, 1, 1))
    assert [[int(r) for m in micros for r in m.returns_BR[:, 0]] for micros in other] != rows


@pytest.mark.detail("G4")
@pytest.mark.parametrize(("normalise", "sorts"), [("global", True), ("micro", False)])
def test_rows_are_sorted_only_where_sums_do_not_care(
    normalise, sorts, rollout_of, batch_of, prompts, stage_context
):
    # A mean of micro-batch means depends on which rows share one: those of the permutation do.
    batch = batch_of(rollout_of(prompts))
    numbers = torch.arange(8.0).unsqueeze(1).expand_as(batch.returns_BR)
    numbered = replace(batch, returns_BR=numbers.clone())
    changed = {"batch_size": 8, "micro_batch_size": 2, "total_episodes": 8, "normalise": normalise}
    cfg = stage_context(ppo=changed | {"num_mini_batches": 1, "num_ppo_epochs": 2}).config.ppo
    lengths_B = batch.mask_BT.sum(1)
    assert len(lengths_B.unique()) > 4
    for epoch, micros in enumerate(ppo_stage.minibatches(numbered, cfg, 1, 0)):
        rows = [int(r) for micro in micros for r in micro.returns_BR[:, 0]]
        drawn = epoch_order(1, "ppo minibatches 0", epoch, 8).tolist()
        assert rows == (sorted(drawn, key=lambda row: int(lengths_B[row])) if sorts else drawn)


@pytest.mark.detail("F1")
def test_the_slot_after_the_last_eos_survives_trimming(models, prompts, uniforms_for):
    # Detail F1: it is the only one whose value target is the score.
    engine = KVEngine(models[0], eos_id=EOS, pad_id=PAD)
    sampling = SamplingConfig(response_length=40)
    whole = generate(engine, prompts, sampling, uniforms_for(prompts, 40), size=3)
    longest = int(whole.response_mask_BR.sum(1).max())
    assert longest < 40
    short = trimmed(whole)
    assert short.tokens_BR.shape[1] == longest + 1
    assert torch.equal(short.tokens_BR, whole.tokens_BR[:, : longest + 1])
    assert not whole.response_mask_BR[:, longest + 1 :].any()

"""Padding, the order of rows and the size of scoring pieces change nothing."""

import pytest
import torch

import nplus.rollout as rollout_module
from nplus.stages import dpo, reward, sft

STEPS = 3


def trained(trainer):
    metrics = [trainer.step(number) for number in range(STEPS)]
    times = {"seconds", "tokens_per_second"}
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return [{k: v for k, v in row.items() if k not in times} for row in metrics], weights


@pytest.mark.parametrize("width", [1, 37])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_padding_of_training_batches(stage, width, row_trainer_of, monkeypatch):
    expected, weights = trained(row_trainer_of(stage))
    for module in (sft, reward, dpo):
        monkeypatch.setattr(module, "WIDTH_MULTIPLE", width)
    found, moved = trained(row_trainer_of(stage))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(moved, weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "kto", "aot"])
def test_pairs_that_share_a_reading_of_their_query(loss, pair_trainer_of):
    expected, weights = trained(pair_trainer_of(loss))
    found, moved = trained(pair_trainer_of(loss, layout="shared"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-10)
    torch.testing.assert_close(moved, weights, rtol=1e-8, atol=1e-10)


@pytest.fixture
def gathered(ppo_trainer_of):
    """`gathered(posts=lambda posts: posts)`: a rollout of some order of the prompts, by prompt."""

    def run(order=lambda posts: posts):
        trainer = ppo_trainer_of()
        posts = order(trainer.posts[:8])
        valued = trainer.experience().gather(posts, step=0)
        rollout = valued.rollout
        mask_BR = rollout.generation.response_mask_BR
        return {
            key: (
                rollout.generation.tokens_BR[b][mask_BR[b]].tolist(),
                [
                    *rollout.logprobs_BR[b][mask_BR[b]].tolist(),
                    *rollout.ref_logprobs_BR[b][mask_BR[b]].tolist(),
                    *valued.values_BR[b][valued.value_mask_BR[b]].tolist(),
                    rollout.scores_B[b].item(),
                ],
            )
            for b, key in enumerate(rollout.generation.prompts.keys)
        }

    return run


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, (tokens, numbers) in expected.items():
        assert found[key][0] == tokens, key
        assert found[key][1] == pytest.approx(numbers, rel=1e-9, abs=1e-9), key


def test_the_order_of_prompts(gathered):
    assert_same(gathered(lambda posts: posts[::-1]), gathered())


def test_the_prompts_beside_a_prompt(gathered):
    whole = gathered()
    part = gathered(lambda posts: posts[2:5])
    assert_same(part, {key: whole[key] for key in part})


@pytest.mark.parametrize(("width", "rows"), [(1, 16), (64, 16), (16, 1), (16, 3)])
def test_the_pieces_that_rollouts_are_scored_in(width, rows, gathered, monkeypatch):
    expected = gathered()
    monkeypatch.setattr(rollout_module, "WIDTH_MULTIPLE", width)
    monkeypatch.setattr(rollout_module, "ROWS_ON_CPU", rows)
    assert_same(gathered(), expected)

"""Batch arithmetic against the numbers of the published runs (eight processes, one epoch)."""

import pytest

from nplus.config import BatchConfig, PPOConfig
from nplus.config.batch_plan import batch_plan, supervised_plan
from nplus.records import InputError

SFT_ROWS, PAIRS, EPISODES = 116_722, 92_832, 1_000_000


@pytest.mark.parametrize(
    ("rows", "batch", "micro", "steps", "micro_batches"),
    [(SFT_ROWS, 128, 1, 911, 16), (PAIRS, 64, 1, 1450, 8)],
    ids=["sft", "reward"],
)
@pytest.mark.detail("C1", "D1")
def test_supervised_steps(rows, batch, micro, steps, micro_batches):
    config = BatchConfig(batch_size=batch, micro_batch_size=micro)
    plan = supervised_plan(config, rows=rows, world_size=8)
    assert (plan.steps, plan.micro_batches) == (steps, micro_batches)
    assert plan.local_rows * 8 == batch
    assert rows - batch < plan.rows_used <= rows


@pytest.mark.parametrize(
    ("micro", "micro_batches"), [(16, 4), (4, 16), (1, 64)], ids=["1B", "2.8B", "6.9B"]
)
@pytest.mark.detail("E1", "G1")
def test_ppo_steps(micro, micro_batches):
    plan = batch_plan(
        PPOConfig(total_episodes=EPISODES, batch_size=512, micro_batch_size=micro), world_size=8
    )
    assert (plan.updates, plan.optimiser_steps) == (1953, 7812)
    assert (plan.local_rows, plan.minibatch_rows, plan.micro_batches) == (64, 64, micro_batches)
    assert (plan.episodes_used, plan.episodes_left) == (999_936, 64)


def test_minibatches_multiply_the_optimiser_steps():
    ppo = PPOConfig(
        total_episodes=256, batch_size=64, num_mini_batches=4, num_ppo_epochs=3, micro_batch_size=4
    )
    plan = batch_plan(ppo, world_size=2)
    assert (plan.updates, plan.minibatch_rows, plan.micro_batches) == (4, 8, 2)
    assert plan.local_rows == 32
    assert plan.optimiser_steps == 4 * 3 * 4


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_rows_of_all_processes_are_the_batch(world_size):
    ppo = PPOConfig(total_episodes=5_000, batch_size=512, num_mini_batches=2, micro_batch_size=8)
    plan = batch_plan(ppo, world_size=world_size)
    rows = plan.micro_batches * ppo.micro_batch_size * ppo.num_mini_batches * world_size
    assert rows == ppo.batch_size
    assert plan.episodes_used + plan.episodes_left == 5_000


@pytest.mark.parametrize(
    ("changes", "world_size", "match"),
    [
        ({"batch_size": 512}, 3, "multiple of 3"),
        ({"batch_size": 512, "micro_batch_size": 128}, 8, r"does not divide the 64 rows"),
        ({}, 0, "at least one process"),
    ],
)
def test_an_impossible_plan_says_what_to_change(changes, world_size, match):
    with pytest.raises(InputError, match=match):
        batch_plan(PPOConfig(**changes), world_size=world_size)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"total_episodes": 100}, "raise total_episodes or lower batch_size"),
        ({"num_mini_batches": 3}, "multiple of num_mini_batches=3"),
        ({"micro_batch_size": 7}, "choose one that divides it"),
    ],
)
def test_ppo_refuses_rows_that_do_not_divide(changes, match):
    with pytest.raises(ValueError, match=match):
        PPOConfig(**changes)


def test_supervised_refusals():
    batch = BatchConfig(batch_size=64, micro_batch_size=16)
    with pytest.raises(InputError, match=r"sft\.batch\.batch_size=64 .* multiple of 3"):
        supervised_plan(batch, rows=100, world_size=3, where="sft.batch")
    with pytest.raises(InputError, match="no rows"):
        supervised_plan(batch, rows=0)


def test_epochs_flow_into_one_another_and_a_small_set_still_makes_a_step():
    batch = BatchConfig(batch_size=64, micro_batch_size=16)
    assert supervised_plan(batch, rows=96, epochs=2).steps == 3
    assert supervised_plan(batch, rows=10).steps == 1

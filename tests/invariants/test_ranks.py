"""The same run on 1, 2 and 4 processes and under every micro-batch size."""

import math

import numpy as np
import pytest
import torch

from nplus.batches import Objective
from nplus.config import OptimConfig
from nplus.distributed.topology import Local, Topology, dealt
from nplus.metrics import Max, Mean, Sum
from nplus.stages import compute
from nplus.training.optim import Optimizer
from nplus.training.update import NonFiniteLossError, update

UPDATES = 8
TIMES = {"seconds", "tokens_per_second"}


def test_the_largest_piece_goes_to_who_has_least():
    assert dealt([1.0, 5.0, 3.0, 1.0], 2) == [[1], [0, 2, 3]]
    assert dealt([1.0, 1.0], 3) == [[0], [1], []]
    assert dealt([], 2) == [[], []]
    assert Topology().share([1.0, 2.0]) == [0, 1]


def test_one_process_needs_no_others():
    alone, x = Local(), torch.ones(2)
    assert alone.sum(x) is x
    assert (alone.gather(3), alone.broadcast("a")) == ([3], "a")


def test_the_collectives(in_ranks):
    def work(topology):
        found = topology.collectives.sum(torch.tensor([float(topology.rank + 1), 10.0]))
        return (
            found.tolist(),
            topology.collectives.gather("ab"[topology.rank]),
            topology.collectives.broadcast({"from": topology.rank}),
            topology.leads,
        )

    assert in_ranks(2, work) == [
        ([3.0, 20.0], ["a", "b"], {"from": 0}, True),
        ([3.0, 20.0], ["a", "b"], {"from": 0}, False),
    ]


def told(metrics):
    return {name: value for name, value in metrics.items() if name not in TIMES}


def flat(modules):
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()]).numpy()


def ppo_run(trainer):
    """Metrics, sampled tokens and keys of every update, and the weights at the end."""
    found = []
    for step in range(UPDATES):
        made = trainer.update(step)
        generation = made.rollout.generation
        found.append(
            (
                told(made.metrics),
                generation.tokens_BR.tolist(),
                generation.response_mask_BR.tolist(),
                generation.prompts.keys,
            )
        )
    return found, flat([trainer.policy, trainer.critic])


SETTINGS = {
    "plain": {},
    "sorted into other micro-batches": {"micro_batch_size": 1},
    "whitened by minibatch": {"whitening_scope": "minibatch", "whiten_rewards": True},
    "steered": {"kl_target": 1.0, "kl_horizon": 64},
}


@pytest.fixture(scope="module")
def alone(ppo_trainer_of):
    """The run of one process under each of SETTINGS."""
    return {name: ppo_run(ppo_trainer_of(**changed)) for name, changed in SETTINGS.items()}


def assert_same_run(found, expected):
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours[1:] == theirs[1:]
        assert ours[0] == pytest.approx(theirs[0], rel=1e-9, abs=1e-9, nan_ok=True)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("world", "name"), [*((2, name) for name in SETTINGS), (4, "plain"), (4, "steered")]
)
def test_ppo_on_any_number_of_processes(world, name, alone, ppo_trainer_of, in_ranks):
    found = in_ranks(world, lambda topology: ppo_run(ppo_trainer_of(topology, **SETTINGS[name])))
    for each in found:
        assert_same_run(each, alone[name])
    # All processes hold the same weights, to the bit: none of them drifts.
    assert all((each[1] == found[0][1]).all() for each in found)


def test_two_processes_with_two_workers_each(alone, ppo_trainer_of, in_ranks, monkeypatch):
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)

    def work(topology):
        torch.set_num_threads(2)
        trainer = ppo_trainer_of(topology)
        try:
            return ppo_run(trainer), trainer.beside is not None
        finally:
            trainer.close()

    for found, shared in in_ranks(2, work):
        assert shared
        assert_same_run(found, alone["plain"])


@pytest.mark.parametrize("size", [1, 2])
def test_ppo_under_any_micro_batch_size(size, alone, ppo_trainer_of):
    assert_same_run(ppo_run(ppo_trainer_of(micro_batch_size=size)), alone["plain"])


def test_whitening_by_process_is_another_run(alone, ppo_trainer_of, in_ranks):
    # The paper's: what a process whitens is its own rows, so their number changes the result.
    changed = {"whitening_scope": "rank"}
    first, second = in_ranks(2, lambda t: ppo_run(ppo_trainer_of(t, **changed)))
    assert first[0] == second[0]
    assert abs(first[1] - alone["plain"][1]).max() > 1e-4
    assert_same_run(ppo_run(ppo_trainer_of(**changed)), alone["plain"])


def row_run(trainer):
    metrics = [told(trainer.step(number)) for number in range(UPDATES)]
    return metrics, flat([trainer.model])


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_supervised_stages_on_any_number_of_processes(stage, row_trainer_of, in_ranks):
    metrics, weights = row_run(row_trainer_of(stage))
    runs = [row_run(row_trainer_of(stage, micro=size)) for size in (1, 2, 4, 8)]
    for world in (2, 4):
        runs += in_ranks(world, lambda topology: row_run(row_trainer_of(stage, topology)))
    for found, moved in runs:
        for ours, theirs in zip(found, metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-11)
        np.testing.assert_allclose(moved, weights, rtol=1e-9, atol=1e-11)
    assert (runs[4][1] == runs[5][1]).all()  # two processes, to the bit


def step_of(topology, values, spoil=None, idle=()):
    """One step over `values`, a micro-batch each, with a parameter that few of them touch."""
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    rare = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    unused = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    named = [("w", weight), ("rare", rare), ("unused", unused)]
    optimizer = Optimizer(named, OptimConfig(learning_rate=0.1))

    def objective(micro):
        loss = (weight * micro).square().sum() + (rare.sum() if micro == 5.0 else 0.0)
        loss = loss * math.nan if micro == spoil else loss
        metrics = {"sum": Sum(micro), "max": Max(micro)}
        return Objective({"train": (1.0, Mean(loss, 1.0))}, metrics)

    try:
        found = update(
            values,
            counts=lambda micro: {"train": 1.0},
            objectives=[objective],
            optimizers=[optimizer],
            topology=topology,
        )
    except NonFiniteLossError as error:
        return str(error), weight.item()
    told = {name: metric.value for name, metric in found.items()}
    return told, [p.item() for _, p in named]


@pytest.mark.parametrize("values", [[1.0, 5.0, 3.0], [5.0]])
def test_a_step_with_idle_processes_and_parameters(values, in_ranks):
    expected = step_of(None, values)
    found = in_ranks(2, lambda topology: step_of(topology, values))
    for told, weights in found:
        assert told == pytest.approx(expected[0])
        assert weights == pytest.approx(expected[1], rel=1e-12)
    assert expected[1][2] == 1.0  # what has no gradient does not decay


def test_all_processes_leave_a_step_out_together(in_ranks):
    found = in_ranks(2, lambda topology: step_of(topology, [1.0, 5.0, 3.0], spoil=3.0))
    assert [weight for _, weight in found] == [2.0, 2.0]
    assert all("loss is nan" in why for why, _ in found)

"""Rollouts of a fixed age: who draws what, in one process or two, and after any resume."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from nplus.algorithms import reinforce
from nplus.models.lm import response_logprobs
from nplus.runs import StageDir
from nplus.stages import scoring
from nplus.stages.context import Context
from nplus.stages.groups import Groups, prompts_of
from nplus.stages.keeping import Keeper

UPDATES = 4
TIMES = {"seconds", "tokens_per_second"}
ALONE = {"compute": {"side_by_side": False}}
EAGER = {"optim": {"learning_rate": 5e-3, "lr_scheduler_type": "constant"}}
"""Weights that move enough for an update to tell them apart."""


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()]).numpy().copy()


def run(trainer, steps=range(UPDATES)):
    """Metrics and tokens of every update, and the weights at the end."""
    found = []
    for step in steps:
        made = trainer.update(step)
        metrics = {name: x for name, x in made.metrics.items() if name not in TIMES}
        found.append((metrics, made.rollout.generation.tokens_BR.tolist()))
    return found, weights(trainer.policy)


def assert_same(found, expected):
    """To the bit."""
    np.testing.assert_equal(found[0], expected[0])
    assert (found[1] == expected[1]).all()


@pytest.fixture
def closing():
    """`closing(trainer)` ends its worker afterwards."""
    made = []

    def keep(trainer):
        made.append(trainer)
        return trainer

    yield keep
    for trainer in made:
        trainer.close()


# --- the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("staleness", "drew"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (2, [0, 0, 0, 1, 2])]
)
def test_which_weights_draw_for_which_update(staleness, drew, group_trainer_of, monkeypatch):
    seen, original = [], Context.engine

    def watched(self, model, version=0):
        seen.append((weights(model).tobytes(), version))
        return original(self, model, version)

    monkeypatch.setattr(Context, "engine", watched)
    trainer = group_trainer_of("rloo", max_staleness=staleness, **EAGER, **ALONE)
    had, told = [], []
    for step in range(5):
        had.append(weights(trainer.policy).tobytes())
        updated = trainer.update(step)
        told.append(updated.metrics["val/staleness"])
        assert updated.rollout.generation.policy_version == drew[step]
    assert len(set(had)) == 5
    assert [(had.index(one), version) for one, version in seen] == [(n, n) for n in drew]
    assert told == [step - n for step, n in enumerate(drew)]


def by_hand(trainer, staleness):
    """The updates in one straight line, each rollout from a copy of the weights of its time."""
    ctx, cfg = trainer.ctx, trainer.cfg
    past = []
    for step in range(UPDATES):
        past.append(copy.deepcopy(trainer.policy))
        old = past[max(0, step - staleness)]
        groups = Groups(ctx, cfg, old, trainer.reference, trainer.reward_model)
        grouped = groups.gather(prompts_of(trainer.posts, cfg, ctx, step), step)
        generation = grouped.rollout.generation
        mask_BR = generation.response_mask_BR
        with torch.no_grad():
            now_BR, _ = response_logprobs(
                trainer.policy, *generation.sequences(), mask_BR.shape[1], temperature=0.7
            )
        rollout = replace(grouped.rollout, logprobs_BR=now_BR.masked_fill(~mask_BR, 0.0))
        batch, _ = reinforce.credit(replace(grouped, rollout=rollout), cfg)
        trainer.train_on(trainer.method.cut(batch, step), step)
    return weights(trainer.policy)


@pytest.mark.parametrize(
    ("staleness", "importance"), [(0, "truncate"), (1, "none"), (1, "truncate"), (2, "mask")]
)
def test_it_comes_to_what_a_straight_line_comes_to(staleness, importance, group_trainer_of):
    def made():
        changed = {"max_staleness": staleness, "importance": importance}
        changed |= {"importance_cap": 1.05} if staleness else {}
        changed["sampling"] = {"response_length": 7, "temperature": 0.7}
        return group_trainer_of("rloo", **changed, **EAGER, **ALONE)

    trainer = made()
    assert (trainer.ahead is None) == (staleness == 0)
    found, end = run(trainer)
    np.testing.assert_allclose(end, by_hand(made(), staleness), rtol=1e-9, atol=1e-9)
    bounded = [metrics.get("val/importance_bounded") for metrics, _ in found]
    if staleness == 0 or importance == "none":
        assert bounded == [None] * UPDATES
    else:
        assert bounded[0] == 0.0
        assert max(bounded[1:]) > 0.0


def test_staleness_0_is_the_synchronous_run(group_trainer_of):
    plain = run(group_trainer_of("grpo", **ALONE))
    assert_same(run(group_trainer_of("grpo", max_staleness=0, importance="mask", **ALONE)), plain)
    assert not (run(group_trainer_of("grpo", max_staleness=1, **ALONE))[1] == plain[1]).all()


def test_the_samplers_own_log_probs_leave_nothing_to_correct(group_trainer_of):
    changed = {"max_staleness": 1, "old_logprobs": "sampler", "importance_cap": 1.01}
    found, _ = run(group_trainer_of("rloo", **changed, **EAGER, **ALONE))
    assert [metrics["val/importance"] for metrics, _ in found] == [1.0] * UPDATES
    assert [metrics["val/importance_bounded"] for metrics, _ in found] == [0.0] * UPDATES


@pytest.mark.parametrize("importance", ["truncate", "mask"])
def test_old_responses_teach_too(importance, group_trainer_of, monkeypatch):
    def says_seven(model, generation, shared):
        said = (generation.tokens_BR == 7) & generation.response_mask_BR
        return said.any(1).double()

    monkeypatch.setattr(scoring, "rm_scores", says_seven)
    sizes = {"batch_size": 64, "micro_batch_size": 32, "total_episodes": 64 * 6}
    changed = {"max_staleness": 2, "importance": importance, "kl_coef": 0.0}
    trainer = group_trainer_of("rloo", num_generations=4, **sizes, **changed, **EAGER, **ALONE)
    scores = [trainer.update(step).metrics["objective/scores"] for step in range(6)]
    assert max(scores[:3]) < 0.3  # all three of the first weights
    assert min(scores[3:]) > 0.7


# --- two processes ------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("algorithm", "changed"),
    [
        ("rloo", {"max_staleness": 1, "total_episodes": 32}),  # the last draws nothing
        ("nash_md", {"max_staleness": 2}),
        ("online_dpo", {"max_staleness": 1}),
    ],
)
def test_a_worker_changes_nothing(algorithm, changed, group_trainer_of, closing):
    trainer = closing(group_trainer_of(algorithm, compute={"side_by_side": True}, **changed))
    found = run(trainer)
    assert trainer.ahead.worker is not None
    assert trainer.beside is None
    torch.set_num_threads(1)  # as many as each of the two has
    assert_same(found, run(group_trainer_of(algorithm, **changed, **ALONE)))


@pytest.mark.usefixtures("two_threads")
def test_what_training_writes_meanwhile_is_not_seen(group_trainer_of, closing):
    changed = {"max_staleness": 1, **EAGER}
    trainer = closing(group_trainer_of("rloo", compute={"side_by_side": True}, **changed))
    other = group_trainer_of("rloo", **changed, **ALONE)
    for each in (trainer, other):
        each.update(0)
        each.ahead.take(1)

    def torn():
        with torch.no_grad():
            for p in trainer.policy.parameters():
                p.fill_(float("nan"))

    trainer.ahead.beside(torn, 1)
    ours, theirs = (each.ahead.take(2).rollout for each in (trainer, other))
    assert torch.equal(ours.generation.tokens_BR, theirs.generation.tokens_BR)
    assert torch.equal(ours.generation.logprobs_BR, theirs.generation.logprobs_BR)
    assert ours.generation.policy_version == 1


def test_a_worker_is_for_one_process_with_two_threads(group_trainer_of, two_threads, closing):
    trainer = closing(group_trainer_of("rloo", compute={"side_by_side": False}, max_staleness=1))
    trainer.update(0)
    assert trainer.ahead.worker is None


def test_any_number_of_processes(group_trainer_of, in_ranks):
    def work(topology):
        return run(group_trainer_of("rloo", topology, max_staleness=1))

    expected = run(group_trainer_of("rloo", max_staleness=1, **ALONE))
    for found in in_ranks(2, work):
        assert [tokens for _, tokens in found[0]] == [tokens for _, tokens in expected[0]]
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-7)


# --- resume -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("algorithm", "staleness", "worker"),
    [("rloo", 1, True), ("rloo", 2, False), ("grpo", 3, True), ("online_dpo", 1, False)],
)
def test_a_resumed_run_is_the_whole_one_to_the_bit(
    algorithm, staleness, worker, group_trainer_of, closing, tmp_path
):
    def made():
        changed = {"max_staleness": staleness, "compute": {"side_by_side": worker}}
        return closing(group_trainer_of(algorithm, **changed, **EAGER))

    def kept(trainer, until):
        optimizers = {"policy": trainer.optimizer}
        keeper = Keeper(StageDir(tmp_path), trainer.ctx, trainer.modules(), optimizers, 1, 3)
        first, found = keeper.begin(), []
        for step in range(first, until):
            found += run(trainer, [step])[0]
            keeper.after(step + 1)
        return first, found, weights(trainer.policy)

    whole = run(made(), range(5))
    parts = [kept(made(), until) for until in (1, 3, 5)]
    assert [first for first, *_ in parts] == [0, 1, 3]
    assert_same(([row for _, found, _ in parts for row in found], parts[-1][2]), whole)

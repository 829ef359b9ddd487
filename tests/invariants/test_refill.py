"""Dynamic sampling until the batch is full: a scripted reward says which prompts teach nothing."""

import pytest
import torch

from nplus.runs import StageDir
from nplus.stages import compute, groups, scoring
from nplus.stages.keeping import Keeper
from nplus.stages.reinforce import PolicyGradient

PROMPTS, POSTS = 4, 11
DULL = {"p0", "p2", "p3", "p5", "p7", "p9"}
"""Prompts of which every response has the same score."""


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """Scores by prompt and response alone; `scripted.clear()` makes every prompt tell."""
    dull = set(DULL)

    def scores(model, generation, shared):
        tokens = generation.tokens_BR.double().sum(1) % 97
        quiet = torch.tensor([key in dull for key in generation.prompts.keys])
        return tokens.masked_fill(quiet, 1.0)

    monkeypatch.setattr(scoring, "rm_scores", scores)
    return dull


@pytest.fixture
def dapo(group_trainer_of):
    """`dapo(most, **changed)`: with so many draws at most."""

    def build(most, topology=None, **changed):
        settings = {"overlong_share": None, "num_generations": 2, **changed}
        return group_trainer_of("dapo", topology, dynamic_sampling_max=most, **settings)

    return build


def drawn(made):
    """Prompts of an update, in the order they were drawn."""
    return list(made.rollout.generation.prompts.keys)[::2]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


def test_the_batch_is_full(dapo, monkeypatch):
    trained, cut = [], PolicyGradient.cut

    def counted(self, batch, step, hands=1):
        trained.append(len(batch))
        return cut(self, batch, step, hands)

    monkeypatch.setattr(PolicyGradient, "cut", counted)
    for step in range(3):
        once, full = drawn(dapo(1).update(step)), dapo(12).update(step)
        assert drawn(full)[:PROMPTS] == once
        assert len([key for key in drawn(full) if key not in DULL]) == PROMPTS
        further = drawn(full)[PROMPTS:]
        assert len({*further} - {*once}) == len(further)
        assert full.metrics["groups/drawn"] == len(drawn(full))
        assert full.metrics["groups/dropped"] == len(drawn(full)) - PROMPTS
        assert [post.id for post in full.posts[::2]] == drawn(full)
        kept = [key for key in once if key not in DULL]
        assert trained[-2:] == [2 * len(kept), 2 * PROMPTS]


def test_what_is_full_draws_nothing_more(dapo, scripted):
    scripted.clear()
    one, many = dapo(1), dapo(5)
    first, second = one.update(0), many.update(0)
    assert second.rollout.generation.tokens_BR.equal(first.rollout.generation.tokens_BR)
    assert second.metrics.pop("groups/drawn") == PROMPTS
    assert second.metrics.keys() == first.metrics.keys()
    assert weights(many).equal(weights(one))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_draws_than_allowed(dapo, scripted, monkeypatch, most):
    scripted |= {f"p{n}" for n in range(POSTS)}
    asked, gather = [], groups.Groups.gather

    def counted(self, posts, *arguments):
        asked.append(len(posts))
        return gather(self, posts, *arguments)

    monkeypatch.setattr(groups.Groups, "gather", counted)
    found = dapo(most).update(0)
    assert len(asked) == most
    assert all(0 < count <= PROMPTS for count in asked)
    assert found.metrics["groups/steps"] == 0.0


def test_a_draw_hangs_on_seed_update_and_draw_alone(dapo):
    """More draws change none of those before them, and what came before the update changes none."""
    few, many, later = (dapo(most) for most in (2, 12, 12))
    some, all_of = drawn(few.update(2)), drawn(many.update(2))
    assert PROMPTS < len(some) < len(all_of)
    assert some == all_of[: len(some)]
    later.update(0)
    assert drawn(later.update(2)) == all_of


def test_a_resumed_run_is_the_whole_one_to_the_bit(dapo, tmp_path):
    def kept(trainer, steps):
        optimizers = {"policy": trainer.optimizer}
        where = StageDir(tmp_path)
        keeper = Keeper(where, trainer.ctx, trainer.modules(), optimizers, 1, 3)
        found = []
        for step in range(keeper.begin(), steps):
            found.append(drawn(trainer.update(step)))
            keeper.after(step + 1)
        return found, weights(trainer)

    trainer = dapo(6)
    whole = [drawn(trainer.update(step)) for step in range(4)]
    before, _ = kept(dapo(6), 2)
    after, end = kept(dapo(6), 4)
    assert before + after == whole
    assert end.equal(weights(trainer))
    assert max(map(len, whole)) > PROMPTS


def test_processes_and_micro_batches_change_nothing(dapo, in_ranks):
    def run(trainer):
        names = [drawn(trainer.update(step)) for step in range(2)]
        return names, weights(trainer).tolist()

    names, end = run(dapo(6))
    found = [run(dapo(6, micro_batch_size=1))]
    found += in_ranks(2, lambda topology: run(dapo(6, topology)))
    for each, ends in found:
        assert each == names
        assert ends == pytest.approx(end, rel=1e-7, abs=1e-7)


@pytest.mark.usefixtures("two_threads")
def test_a_second_process_beside_changes_nothing(dapo, monkeypatch):
    alone = dapo(6)
    names = [drawn(alone.update(step)) for step in range(2)]
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)
    trainer = dapo(6, compute={"side_by_side": True})
    try:
        assert [drawn(trainer.update(step)) for step in range(2)] == names
        assert trainer.beside is not None
    finally:
        trainer.close()
    torch.testing.assert_close(weights(trainer), weights(alone), rtol=1e-7, atol=1e-7)

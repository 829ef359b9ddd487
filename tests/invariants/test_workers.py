"""Steps of SFT, reward and DPO: two processes come to what one comes to, every time."""

import pytest
import torch

from nplus.stages import compute
from nplus.training.update import update


@pytest.fixture
def trainer(row_trainer_of, monkeypatch):
    """`trainer(stage, threads=1, side_by_side=True)`: one of the three, from the same weights."""
    before = torch.get_num_threads()
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)
    made = []

    def build(stage, threads, side_by_side=True, **changed):
        torch.set_num_threads(threads)
        cpu = {"side_by_side": side_by_side}
        made.append(row_trainer_of(stage, rows=12, attn="batched", compute=cpu, **changed))
        return made[-1]

    yield build
    for each in made:
        each.close()
    torch.set_num_threads(before)


@pytest.fixture
def shared(monkeypatch):
    """Whether two processes shared each step."""
    seen = []

    def watched(*args, **settings):
        seen.append(settings["beside"] is not None)
        return update(*args, **settings)

    monkeypatch.setattr("nplus.stages.trainer.update", watched)
    return seen


def after(trainer, steps=3):
    metrics = [trainer.step(number) for number in range(steps)]
    timing = {"seconds", "tokens_per_second"}
    return (
        [{k: v for k, v in row.items() if k not in timing} for row in metrics],
        [p.detach().clone() for p in trainer.model.parameters()],
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_two_processes_come_to_what_one_comes_to(stage, trainer, shared):
    metrics, weights = after(trainer(stage, 1))
    found, moved = after(trainer(stage, 2))
    assert shared == [False] * 3 + [True] * 3
    for ours, theirs in zip(found, metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-11)
    for mine, other in zip(moved, weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
    # Gradients of two processes add up in the same order every time.
    again, exactly = after(trainer(stage, 2))
    assert again == found
    assert all(map(torch.equal, exactly, moved))


@pytest.mark.parametrize("changed", [{"side_by_side": False}, {"model": {"dropout": 0.1}}])
def test_one_process_where_it_is_asked_for_or_dropout_draws(changed, trainer, shared):
    trainer("sft", 2, **changed).step(0)
    assert shared == [False]


def test_a_small_step_is_not_shared_out(trainer, shared, monkeypatch):
    built = trainer("sft", 2)
    slots = built.micro_batches(built.rows[:12], 12)[0].slots
    for worth in (slots * built.parameters, slots * built.parameters + 1):
        monkeypatch.setattr(compute, "WORTH_SHARING", worth)
        built.step(0)
    assert shared == [True, False]


def test_each_process_has_a_micro_batch(trainer, monkeypatch):
    sizes = []

    def watched(micros, **settings):
        sizes.append(sorted(map(len, micros)))
        return update(micros, **settings)

    monkeypatch.setattr("nplus.stages.trainer.update", watched)
    for rows in (4, 12):
        for threads in (1, 2):
            one = trainer("sft", threads)
            one.batch = one.batch.model_copy(update={"micro_batch_size": rows})
            one.step(0)
    assert sizes == [[4, 4, 4], [4, 4, 4], [12], [6, 6]]

"""Steps that are left out, signals between steps, and what is kept of both."""

import json
import math
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nplus.batches import TokenBatch
from nplus.metrics import Mean
from nplus.records import StopError
from nplus.runs import StageDir, StoppedBySignal
from nplus.stages.keeping import flat
from nplus.stages.trainer import Trainer
from nplus.training.checkpoint import all_checkpoints

ROWS = 8
TOTAL = 6


def batch(row):
    tokens = torch.tensor([[row, row + 1]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return TokenBatch(tokens, mask, mask, torch.ones_like(tokens, dtype=torch.float32))


@pytest.fixture
def trainer(stage_context):
    """`trainer(spoilt, **optim)`: one weight, a row a step; the loss of `spoilt` rows is NaN."""

    def build(spoilt=(), on_step=lambda number: None, **optim):
        from nplus.batches import Objective

        ctx = stage_context(sft={"optim": {"learning_rate": 0.1, **optim}})
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, 2.0)
        seen = []

        def objective(micro):
            row = int(micro.tokens_BT[0, 0])
            seen.append(row)
            on_step(row)
            loss = (model.weight * (row + 1)).square().sum()
            loss = loss * math.nan if row in spoilt else loss
            return Objective({"train": (1.0, Mean(loss, 1.0))}, {})

        made = Trainer(
            ctx=ctx,
            name="sft",
            model=model,
            rows=list(range(ROWS)),
            micro_batches=lambda rows, size: [batch(row) for row in rows],
            counts=lambda micro: {"train": 1.0},
            objective=objective,
            timing=lambda micros, seconds: {"seconds": seconds},
            epochs=1,
            optim=ctx.config.sft.optim,
            batch=SimpleNamespace(batch_size=1, micro_batch_size=1),
            order=lambda start, count: range(start, start + count),
        )
        made.total = TOTAL
        return made, seen

    return build


def run(made, path, save_steps=1):
    path.mkdir(exist_ok=True)
    return made.run(StageDir(path), save_steps=save_steps, shown={"loss": "loss/train"})


def events(path, kind):
    lines = (path / "journal.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("event") == kind]


def steps(path):
    return [row["step"] for row in StageDir(path).journal_rows()]


def test_a_step_that_is_not_finite_is_left_out_counted_and_kept(trainer, tmp_path):
    made, _ = trainer(spoilt=(2, 3))
    run(made, tmp_path)
    assert steps(tmp_path) == [1, 2, 5, 6]
    told = events(tmp_path, "skipped")
    assert [row["step"] for row in told] == [3, 4]
    assert all("loss is nan" in row["why"] for row in told)
    kept = load_file(tmp_path / told[0]["batch"])
    assert kept["0.tokens_BT"].tolist() == [[2, 3]]
    # The same as a run that never saw the two rows, but for the schedule, which goes on.
    assert math.isfinite(made.model.weight.item())


def test_too_many_in_a_row_end_the_run_with_the_last_good_weights(trainer, tmp_path):
    made, seen = trainer(spoilt=(1, 2, 3, 4), max_skips=2)
    with pytest.raises(StopError, match=r"3 steps in a row.*Lower the learning rate"):
        run(made, tmp_path)
    assert seen == [0, 1, 2, 3]
    newest = all_checkpoints(tmp_path / "checkpoints")[0]
    assert load_file(newest / "model.safetensors")["weight"].item() == made.model.weight.item()
    # It goes on where it stopped, and counts on.
    again, seen = trainer(spoilt=(1, 2, 3, 4), max_skips=2)
    with pytest.raises(StopError):
        run(again, tmp_path)
    assert seen == [3]


def test_single_ones_do_not_add_up(trainer, tmp_path):
    made, _ = trainer(spoilt=(0, 2, 4), max_skips=1)
    run(made, tmp_path)
    assert steps(tmp_path) == [2, 4, 6]


def test_a_stage_all_of_whose_steps_are_left_out_ends_with_a_message(trainer, tmp_path):
    for spoilt in (range(ROWS), ()):  # resumed, it has no step left to take
        made, _ = trainer(spoilt=spoilt, max_skips=TOTAL)
        with pytest.raises(StopError, match=r"every step of the stage.*skipped/.*Lower the learn"):
            run(made, tmp_path)
        assert made.model.weight.item() == 2.0


def test_a_signal_makes_a_checkpoint_after_the_step(trainer, tmp_path):
    whole, _ = trainer()
    run(whole, tmp_path / "whole", save_steps=0)

    def heard(row):
        if row == 2:
            made.ctx.stop.wish = signal.SIGTERM

    made, seen = trainer(on_step=heard)
    with pytest.raises(StoppedBySignal):
        run(made, tmp_path / "cut", save_steps=0)
    assert seen == [0, 1, 2]
    assert steps(tmp_path / "cut") == [1, 2, 3]
    again, seen = trainer()
    run(again, tmp_path / "cut", save_steps=0)
    assert seen == [3, 4, 5]
    assert torch.equal(again.model.weight, whole.model.weight)
    assert steps(tmp_path / "cut") == [1, 2, 3, 4, 5, 6]


def test_tensors_of_batches_by_number_and_field():
    found = flat([batch(1), batch(5)])
    assert found["1.tokens_BT"].tolist() == [[5, 6]]
    assert set(found) >= {"0.mask_BT", "1.mask_BT"}

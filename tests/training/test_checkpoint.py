"""A resumed run is the uninterrupted one, bit for bit; a torn checkpoint is never seen."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import nplus.training.checkpoint as checkpoint
from nplus.algorithms import supervised
from nplus.config import CheckpointConfig, OptimConfig
from nplus.data.collate import token_batch
from nplus.models.lm import sequence_logits
from nplus.models.scalar import ScalarModel
from nplus.records import InputError, StorageError
from nplus.runs import StageDir
from nplus.seeding import stream
from nplus.training.checkpoint import (
    Checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from nplus.training.optim import Optimizer, schedule
from nplus.training.update import update

TOTAL = 5


class Training:
    """A causal model and a critic, each with its optimiser, as PPO has them."""

    def __init__(self, tiny_causal, name, seed=0):
        self.model = tiny_causal(seed, spread=0.05)
        self.critic = ScalarModel.from_causal(tiny_causal(seed + 1), pad_id=1, seed=seed)
        cfg = OptimConfig(name=name, learning_rate=1e-2)
        self.modules = {"policy": self.model, "critic": self.critic}
        self.optimizers = {n: Optimizer(m.named_parameters(), cfg) for n, m in self.modules.items()}

    def step(self, step):
        ids = stream(0, "rows", step).integers(2, 61, size=(4, 6)).tolist()
        batch = token_batch([(row[:3], [*row[3:], 0]) for row in ids], pad_id=1)
        for optimizer in self.optimizers.values():
            optimizer.set_factor(schedule("cosine", step, TOTAL))

        def objective(micro):
            logits = sequence_logits(self.model, micro.tokens_BT, micro.mask_BT)
            found = supervised.objective(logits, micro)
            value = self.critic.scores(micro.tokens_BT, micro.mask_BT).square().mean()
            weight, loss = found.terms["train"]
            loss = type(loss)(loss.sum + value * loss.count, loss.count)
            return type(found)(terms={"train": (weight, loss)}, metrics={})

        optimizers = list(self.optimizers.values())
        update([batch], counts=supervised.counts, objectives=[objective], optimizers=optimizers)

    def run(self, first, last):
        for step in range(first, last):
            self.step(step)

    def state(self):
        tensors = {
            f"{n}.{key}": value
            for n, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for n, optimizer in self.optimizers.items():
            tensors |= {f"{n}.optimizer.{k}": v for k, v in optimizer.tensors().items()}
        return tensors

    def save(self, folder, step):
        kept = {"modules": self.modules, "optimizers": self.optimizers}
        return save_checkpoint(folder, step, **kept, cursor={"note": "x"})

    def load(self, path):
        return load_checkpoint(path, modules=self.modules, optimizers=self.optimizers)


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resumed_is_uninterrupted(name, tiny_causal, tmp_path):
    whole = Training(tiny_causal, name)
    whole.run(0, TOTAL)
    before = Training(tiny_causal, name)
    before.critic.set_shift(0.0)
    before.run(0, 2)
    path = before.save(tmp_path, 2)
    # Other weights at first, and the optimisers have stepped: all of it is replaced.
    after = Training(tiny_causal, name, seed=7)
    after.run(0, 1)
    assert after.load(path) == {"step": 2, "note": "x"}
    assert_same(after.state(), before.state())
    after.run(2, TOTAL)
    assert_same(after.state(), whole.state())


def test_the_shift_of_a_reward_model_is_kept(tiny_causal, tmp_path):
    model = ScalarModel.from_causal(tiny_causal(), pad_id=1, seed=0)
    model.set_shift(0.625)
    path = save_checkpoint(tmp_path, 1, modules={"m": model}, optimizers={}, cursor={})
    fresh = ScalarModel.from_causal(tiny_causal(1), pad_id=1, seed=1)
    load_checkpoint(path, modules={"m": fresh}, optimizers={})
    assert float(fresh.shift) == 0.625


def test_a_checkpoint_is_safetensors_and_json_only(tiny_causal, tmp_path):
    path = Training(tiny_causal, "adamw").save(tmp_path, 3)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    with safe_open(path / "policy.safetensors", framework="pt") as file:
        assert len(list(file.keys())) > 10


def test_torn_and_foreign_directories_are_not_seen(tiny_causal, tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    good = Training(tiny_causal, "adamw").save(tmp_path, 3)
    torn = tmp_path / ".step_000009.123.tmp"
    torn.mkdir()
    (torn / "cursor.json").write_text('{"step": 9}')
    (tmp_path / "step_000010").mkdir()
    assert latest_checkpoint(tmp_path) == good


def test_the_newest_replaces_the_older(tiny_causal, tmp_path):
    training = Training(tiny_causal, "adamw")
    (tmp_path / ".step_000001.123.tmp").mkdir()  # what a killed process left
    for step in (1, 2, 10):
        training.save(tmp_path, step)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000010"]


def test_so_many_stay_as_are_asked_for(tmp_path):
    for step in (1, 9, 10, 11):
        save_checkpoint(tmp_path, step, modules={}, optimizers={}, cursor={}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000011"]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "file", ["policy.safetensors", "critic.optimizer.safetensors", "cursor.json", "contents.json"]
)
def test_the_one_before_serves_where_the_newest_is_damaged(damage, file, tiny_causal, tmp_path):
    training, where, notes = Training(tiny_causal, "adamw"), StageDir(tmp_path), []
    training.run(0, 1)
    kept = Checkpoints(
        where, training.modules, training.optimizers, CheckpointConfig(), tell=notes.append
    )
    where.journal(1, {"loss": 1.0})
    kept.save(1, skips=2)
    state = {name: value.clone() for name, value in training.state().items()}
    training.run(1, 2)
    where.journal(2, {"loss": 0.5})
    kept.save(2)
    damage(where.checkpoints / "step_000002" / file)
    assert kept.resume() == {"step": 1, "skips": 2}
    assert_same(training.state(), state)
    assert [row["step"] for row in where.journal_rows()] == [1]
    assert len(notes) == 1
    assert "step_000002: damaged" in notes[0]
    assert file in notes[0]
    assert '"damaged"' in where.journal_path.read_text()


def test_when_every_checkpoint_is_damaged_the_user_decides(tiny_causal, tmp_path):
    training, where = Training(tiny_causal, "adamw"), StageDir(tmp_path)
    kept = Checkpoints(where, training.modules, training.optimizers, CheckpointConfig())
    assert kept.resume() == {"step": 0}
    for step in (1, 2):
        kept.save(step)
        flip(where.checkpoints / f"step_{step:06d}" / "policy.safetensors")
    with pytest.raises(InputError, match=r"every checkpoint is damaged \(step_000002: policy"):
        kept.resume()


def test_a_journal_that_is_not_what_it_was_is_refused(tiny_causal, tmp_path):
    training, where = Training(tiny_causal, "adamw"), StageDir(tmp_path)
    kept = Checkpoints(where, training.modules, training.optimizers, CheckpointConfig())
    where.journal(1, {"loss": 1.0})
    kept.save(1)
    where.journal(2, {"loss": 2.0})
    kept.resume()  # what came after the checkpoint goes
    assert [row["step"] for row in where.journal_rows()] == [1]
    text = where.journal_path.read_text()
    where.journal_path.write_text(text.replace("1.0", "1.5"))
    with pytest.raises(InputError, match="not what they were at the checkpoint"):
        kept.resume()


def test_checkpoints_are_due_by_steps_and_by_time_but_take_a_share_at_most(tmp_path):
    now = [0.0]
    cfg = CheckpointConfig(seconds=60.0, share=0.02)
    kept = Checkpoints(StageDir(tmp_path), {}, {}, cfg, save_steps=5, clock=lambda: now[0])
    assert [step for step in range(1, 11) if kept.is_due(step)] == [5, 10]
    now[0] = 60.0
    assert kept.is_due(11)
    kept.save(11)
    assert not kept.is_due(12)
    now[0] = 121.0
    assert kept.is_due(12)

    class Slow(torch.nn.Module):
        def state_dict(self):
            now[0] += 10.0  # a checkpoint that takes ten seconds
            return {}

    kept.modules = {"slow": Slow()}
    kept.save(12)
    now[0] += 499.0
    assert not kept.is_due(13)
    now[0] += 1.0
    assert kept.is_due(13)
    never = Checkpoints(StageDir(tmp_path), {}, {}, CheckpointConfig(seconds=None))
    never.next = -1.0
    assert not never.is_due(100)


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_the_old_checkpoint_stands_until_the_new_one_does(
    moment, tiny_causal, tmp_path, monkeypatch
):
    training = Training(tiny_causal, "adamw")
    training.run(0, 1)
    old = training.save(tmp_path, 1)
    state = {name: value.clone() for name, value in training.state().items()}
    training.run(1, 2)

    def power_cut(*args, **kwargs):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        if moment == "while writing":
            patch.setattr(checkpoint, "save_file", power_cut)
        else:
            patch.setattr(Path, "rename", power_cut)
        with pytest.raises(StorageError, match=r"power cut.*step_000001 stands\. Make room"):
            training.save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert latest_checkpoint(tmp_path) == old
    fresh = Training(tiny_causal, "adamw", seed=5)
    fresh.load(old)
    assert_same(fresh.state(), state)
    # The next attempt goes through.
    assert latest_checkpoint(training.save(tmp_path, 2).parent).name == "step_000002"

"""What `auto` comes to: the run's own record, then the tuning, then the default; before any key."""

import json

import pytest
import torch
from rich.console import Console

from nplus.config.auto import auto_keys, value_of
from nplus.config.load import default_of, load_config
from nplus.recipes import recipe
from nplus.stages.road import run_road, stage_config
from nplus.stages.tuning import settle as settling
from nplus.stages.tuning.cache import path_of, this_machine, write
from nplus.stages.tuning.settle import settle

TUNED = {
    "compute.threads": 1,
    "compute.side_by_side": False,
    "compute.matmul_precision": "medium",
    "compute.allocator": "keep",
    "model.attn_implementation": "batched",
}


def auto(*sets, name="toy"):
    return load_config(recipe(name), sets=["compute=auto", *sets])


def values(config):
    return {key: value_of(config, key) for key in TUNED}


def test_a_config_without_auto_stays_and_no_tuning_is_looked_up(monkeypatch):
    monkeypatch.setattr(settling, "read", None)
    config = recipe("toy")
    found = settle(config, {})
    assert found.config is config
    assert (found.autos, found.notes) == ({}, ())
    assert found.line.startswith("compute: cpu, ")
    assert "medium products, eager attention, allocator one_arena" in found.line
    assert "(" not in found.line


def test_auto_takes_what_was_tuned(tuning):
    write(tuning())
    found = settle(auto(), {})
    assert values(found.config) == TUNED == found.autos
    assert found.notes == ()
    assert found.line == (
        "compute: cpu, 1 thread, medium products, batched attention, allocator keep "
        "(tuned 2026-11-21)"
    )


def test_what_is_set_by_hand_stays(tuning):
    write(tuning())
    found = settle(auto("compute.allocator=system", "compute.threads=2"), {})
    assert (found.config.compute.allocator, found.config.compute.threads) == ("system", 2)
    assert "(side_by_side, matmul_precision, attn_implementation tuned 2026-11-21)" in found.line


def test_without_a_tuning_auto_is_the_default_and_the_user_is_told():
    found = settle(auto(), {})
    assert values(found.config) == {key: default_of(key) for key in TUNED}
    assert found.notes == ("this machine is not tuned; run `nplus tune`",)
    assert "highest products, sdpa attention" in found.line
    assert found.line.endswith("(the default)")
    assert f"{torch.get_num_threads()} thread" in found.line


def test_a_damaged_tuning_is_as_good_as_none(tuning):
    path = write(tuning())
    path.write_text("{", encoding="utf-8")
    found = settle(auto(), {})
    assert values(found.config) == {key: default_of(key) for key in TUNED}
    assert f"{path}: ignored" in found.notes[0]


@pytest.mark.parametrize(
    ("sets", "attention"),
    [
        ((), "batched"),
        (("compute.matmul_precision=highest",), "sdpa"),
        (("compute.matmul_precision=medium",), "batched"),
        (("compute.matmul_precision=high",), "sdpa"),  # not measured under it: the default
    ],
)
def test_attention_is_that_of_the_runs_own_precision(tuning, sets, attention):
    write(tuning())
    found = settle(auto(*sets), {})
    assert found.config.model.attn_implementation == attention


def test_attention_is_that_of_the_runs_autocast(tuning):
    made = tuning()
    under = "medium products, autocast bfloat16"
    choices = tuple(
        c.model_copy(update={"value": "eager"}) if c.under == under else c for c in made.choices
    )
    write(made.model_copy(update={"choices": choices}))
    found = {
        (dtype, stage, ppo): settle(
            auto(f"model.dtype={dtype}", f"compute.autocast={stage}", f"ppo.autocast={ppo}"), {}
        ).config.model.attn_implementation
        for dtype in ("float32", "bfloat16")
        for stage in ("none", "bfloat16")
        for ppo in ("none", "bfloat16")
    }
    expected = {kinds: "eager" if "bfloat16" in kinds else "batched" for kinds in found}
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "batched"), ("gemma2", "eager"), (None, "eager")]
)
def test_batched_is_for_architectures_that_it_knows(tuning, tmp_path, kind, attention):
    write(tuning())
    folder = tmp_path / "model"
    folder.mkdir()
    if kind:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    config = auto("pretrain=null", "model.size=null", f"model.model_name_or_path={folder}")
    assert settle(config, {}).config.model.attn_implementation == attention


def test_advice_is_never_taken(tuning):
    write(tuning())
    config = auto("compute.autocast=none")
    assert settle(config, {}).config.compute.autocast == "none"


def test_what_a_run_has_kept_wins_and_the_difference_is_told(tuning):
    write(tuning())
    kept = TUNED | {"model.attn_implementation": "sdpa"}
    found = settle(auto(), kept)
    assert values(found.config) == kept
    [note] = found.notes
    assert note.startswith("model.attn_implementation stays sdpa, as this run began; `nplus tune`")
    assert "--set model.attn_implementation=batched takes it" in note
    assert found.line.endswith("(as this run began)")
    path_of(this_machine("cpu")).unlink()
    assert values(settle(auto(), kept).config) == kept
    assert settle(auto(), kept).notes == ()


def test_threads_are_never_more_than_there_are(tuning, all_cores, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    write(tuning(compute__threads=64))
    for kept in ({}, {"compute.threads": 64}):
        found = settle(auto(), kept)
        assert found.config.compute.threads == all_cores
        assert found.autos["compute.threads"] == 64  # on a larger machine it is so again
    assert settle(auto(), {}, most_threads=1).config.compute.threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert settle(auto(), {}).config.compute.threads == 1


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["data", "pretrain", "ppo", "evaluate"])
def test_a_stage_is_keyed_as_if_the_values_were_set_by_hand(tuning, stage):
    write(tuning())
    by_hand = load_config(recipe("toy"), sets=[f"{k}={json.dumps(v)}" for k, v in TUNED.items()])
    found = settle(auto(), {}).config
    assert auto_keys(found) == ()
    assert found == by_hand
    assert stage_config(stage, found) == stage_config(stage, by_hand)
    assert "auto" not in json.dumps(stage_config(stage, found)["model"])


def test_what_changes_speed_alone_changes_no_key():
    sets = ("compute.threads=1", "compute.side_by_side=false", "compute.allocator=system")
    changed = load_config(recipe("toy"), sets=sets)
    assert stage_config("ppo", changed) == stage_config("ppo", recipe("toy"))
    slower = load_config(recipe("toy"), sets=["compute.matmul_precision=highest"])
    assert stage_config("ppo", slower) != stage_config("ppo", recipe("toy"))


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture
def drive(tmp_path, capsys, monkeypatch):
    """`drive(out)`: the data stage of a tiny run with everything `auto`; its index, its one stage
    and what was printed."""
    monkeypatch.setattr("nplus.stages.road.resolve_device", lambda cfg: torch.device("cpu"))
    small = "data.world={pretrain: 4, train: 8, valid: 4, test: 4, heldout: 2, news: 2}"

    def run(out="run"):
        config = auto(small, name="toy:tiny")
        root = run_road(config, tmp_path / out, until="data", console=Console(width=400))
        [stage] = root.stages().values()
        return root.index(), stage, capsys.readouterr().out

    return run


def test_a_run_writes_what_auto_came_to(tuning, drive):
    write(tuning())
    index, stage, printed = drive()
    assert index["auto"] == TUNED
    assert index["config"]["model"]["attn_implementation"] == "batched"
    assert index["config"]["compute"]["matmul_precision"] == "medium"
    manifest = stage.manifest()
    assert manifest.config["model"]["attn_implementation"] == "batched"
    assert manifest.compute.endswith("(tuned 2026-11-21)")
    assert [line for line in printed.splitlines() if "compute: " in line] == [manifest.compute]


def test_a_run_goes_on_as_it_began_after_another_tuning(tuning, drive):
    write(tuning())
    first, stage, _ = drive()
    before = {p: p.stat().st_mtime_ns for p in stage.path.rglob("*") if p.is_file()}
    write(tuning(attention="eager", made="2027-01-01T00:00:00+00:00"))
    again, same, printed = drive()
    assert again == first
    assert same.path == stage.path
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "data      complete and unchanged, skipped" in printed
    assert "model.attn_implementation stays batched, as this run began" in printed
    other, elsewhere, _ = drive("another")
    assert other["auto"]["model.attn_implementation"] == "eager"
    assert elsewhere.path.name != stage.path.name


def test_a_run_goes_on_as_it_began_without_any_tuning(tuning, drive):
    path = write(tuning())
    first, stage, _ = drive()
    path.unlink()
    again, same, printed = drive()
    assert (again, same.path) == (first, stage.path)
    assert "not tuned" not in printed


def test_a_run_that_began_without_a_tuning_stays_so(tuning, drive):
    first, stage, printed = drive()
    assert "this machine is not tuned; run `nplus tune`" in printed
    write(tuning())
    again, same, _ = drive()
    assert (again, same.path) == (first, stage.path)

"""A run that looks at itself: what is told, once, and nothing where all is well; the command."""

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from nplus.cli import app
from nplus.config.load import load_config
from nplus.data.prepare import DataDir
from nplus.engines.kv import KVEngine
from nplus.findings import read_findings
from nplus.models.files import save_causal_lm
from nplus.models.golden import FILE, GoldenScoreError
from nplus.recipes import recipe
from nplus.report.page import write_report
from nplus.runs import RunRoot
from nplus.stages import ppo as ppo_stage
from nplus.stages.doctor.examine import examine_run
from nplus.stages.road import run_road, stage_config

SMALL = (
    "data.world.pretrain=32", "data.world.train=32", "data.world.valid=8", "data.world.test=6",
    "data.world.heldout=4", "data.world.news=2", "tokenizer.vocab_size=800",
    "data.max_query_tokens=320", "data.max_response_tokens=48", "pretrain.batch.batch_size=16",
    "pretrain.batch.micro_batch_size=16", "sft.batch.batch_size=16", "sft.batch.micro_batch_size=8",
    "sample.prompts=8", "sample.valid_prompts=4", "sample.response_length=48", "label.pairs=16",
    "label.valid_pairs=12", "reward.batch.batch_size=8", "reward.batch.micro_batch_size=4",
    "reward.normalise_rows=16", "ppo.total_episodes=12", "ppo.batch_size=4",
    "ppo.micro_batch_size=2", "ppo.sampling.response_length=48", "evaluate.response_length=48",
    "evaluate.max_rows=4", "compute.matmul_precision=highest", "compute.autocast=none",
)  # fmt: skip


def drive(out, *sets, until="ppo"):
    """The road at the smallest size; returns the run and what it printed."""
    console = Console(file=io.StringIO(), width=1000)
    config = load_config(recipe("toy:tiny"), sets=(*SMALL, *sets))
    root = run_road(config, out, until=until, console=console)
    return root, console.file.getvalue()


def found_in(root):
    return [
        (stage, f.name, f.step)
        for stage, where in root.stages().items()
        for f in read_findings(where.journal_path, stage)
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run up to PPO without a fault; tests that change it work on copies."""
    return drive(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def copied(sound, tmp_path):
    return RunRoot(shutil.copytree(sound[0].path, tmp_path / "run"))


def test_a_sound_run_has_no_findings_in_full_precision(sound):
    root, printed = sound
    assert "doctor" not in printed
    assert found_in(root) == []
    assert examine_run(root).findings == []


def test_faulty_settings_are_told_once_and_before_any_work(sound, copied):
    sets = ("model.dropout=0.3", "ppo.tempered=[old,reference]")
    root, printed = drive(copied.path, *sets)
    found = found_in(root)
    assert [name for _, name, step in found if step == 0] == ["dropout_set", "tempered_unevenly"]
    started = {"ratio_at_start", "dropout_active"}
    assert started <= {name for stage, name, step in found if (stage, step) == ("ppo", 1)}
    assert len({name for _, name, _ in found}) == len(found)
    for _, name, _ in found:
        assert printed.count(f" {name} (") == 1
    assert printed.index("dropout_set") < printed.index("sft ")
    # Again, all stages complete: nothing to look at.
    again, printed = drive(copied.path, *sets)
    assert "doctor:" not in printed
    assert found_in(again) == found


def test_text_without_eos_is_told_before_sft(copied):
    root, _ = drive(copied.path, "tokenizer.distinct_pad=false", until="sft")
    assert [name for _, name, _ in found_in(root)] == ["pad_is_eos", "eos_not_trained"]


def test_switched_off_it_says_nothing_and_changes_no_key(copied):
    sets = ("model.dropout=0.3", "doctor.enabled=false")
    root, printed = drive(copied.path, *sets)
    assert "doctor" not in printed
    assert found_in(root) == []
    on, off = (
        load_config(recipe("toy"), sets=(f"doctor.enabled={value}",)) for value in ("true", "false")
    )
    assert on != off
    assert all(stage_config(name, on) == stage_config(name, off) for name in on.stage_names())


def test_the_watch_changes_no_number(sound, tmp_path):
    off, _ = drive(tmp_path / "off", "doctor.enabled=false")
    for stage in ("sft", "reward", "ppo"):
        a, b = (load_file(r.stages()[stage].model / "model.safetensors") for r in (sound[0], off))
        assert all(torch.equal(a[name], b[name]) for name in a)


def again_with(monkeypatch, root, change):
    """PPO once more, with `change` made to its trainer before the first update."""
    shutil.rmtree(root.stages()["ppo"].path)
    start = ppo_stage.Trainer.start

    def changed(*args):
        trainer = start(*args)
        change(trainer)
        return trainer

    monkeypatch.setattr(ppo_stage.Trainer, "start", changed)
    return found_in(drive(root.path)[0])


def test_a_reference_that_is_not_the_start(copied, monkeypatch):
    def change(trainer):
        with torch.no_grad():
            for p in trainer.reference.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.manual_seed(0)))

    assert ("ppo", "kl_at_start", 1) in again_with(monkeypatch, copied, change)


def test_a_sampler_at_another_temperature(copied, monkeypatch):
    generate = KVEngine.generate

    def hot(self, prompts, sampling, noise_BR):
        return generate(self, prompts, sampling.model_copy(update={"temperature": 1.5}), noise_BR)

    monkeypatch.setattr(KVEngine, "generate", hot)
    found = again_with(monkeypatch, copied, lambda trainer: None)
    assert found == [("ppo", "sampler_differs", 1)]


def test_a_network_left_in_training_mode(copied, monkeypatch):
    from nplus.models.lm import set_dropout

    def change(trainer):
        set_dropout(trainer.reward_model.network, 0.2)
        trainer.reward_model.train()

    found = again_with(monkeypatch, copied, change)
    assert ("ppo", "dropout_active", 1) in found


def test_a_reward_model_from_elsewhere_is_noted(copied, monkeypatch):
    (copied.stages()["reward"].model / FILE).unlink()
    signed_again(copied.stages()["reward"])
    found = again_with(monkeypatch, copied, lambda trainer: None)
    assert found == [("ppo", "golden_missing", 1)]
    assert [f.name for f in examine_run(copied).findings if f.stage == "reward"] == [
        "golden_missing"
    ]


def wrong_head(root):
    file = root.stages()["reward"].model / "model.safetensors"
    state = load_file(file)
    state["score.weight"] = -state["score.weight"]
    save_file(state, file, metadata={"format": "pt"})
    signed_again(root.stages()["reward"])


def signed_again(where):
    """As if the stage had left its files like this: what was planted is not seen by hashes."""
    replace(where.manifest(), outputs=where.artefacts()).write(where.manifest_path)


def test_a_wrong_head_stops_ppo(copied):
    wrong_head(copied)
    shutil.rmtree(copied.stages()["ppo"].path)
    with pytest.raises(GoldenScoreError, match="head or trunk are not those"):
        drive(copied.path)


# --- the command --------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_doctor_of_a_sound_run(copied):
    result = call(copied.path)
    assert result.exit_code == 0, result.output
    assert "nothing found in: the machine, settings, journal of data" in result.stdout


def test_doctor_of_a_faulty_run_names_it_and_ends_with_2(copied):
    wrong_head(copied)
    (copied.stages()["ppo"].critic / FILE).unlink()
    where = copied.stages()["ppo"]
    first = next(where.journal_rows())
    where.journal(1, first["metrics"])  # a journal in which the second update repeats the first
    result = call(copied.path, "--json")
    assert result.exit_code == 2
    assert result.stderr == "nplus: 1 error: golden_mismatch\n"
    row = json.loads(result.stdout)
    assert [(f["name"], f["stage"]) for f in row["findings"]] == [
        ("golden_mismatch", "reward"),
        ("golden_missing", "ppo"),
    ]
    assert row["findings"][0]["numbers"]["largest"] > row["findings"][0]["numbers"]["bound"]
    assert "text" in row["looked_at"]
    assert "torch" in row["facts"]["versions"]
    assert "Traceback" not in call(copied.path).output


def test_doctor_of_a_journal_with_a_fault(copied):
    where = copied.stages()["ppo"]
    row = list(where.journal_rows())[-1]["metrics"]
    for step in range(4, 40):
        where.journal(step, row | {"objective/kl": -1.0, "policy/entropy_avg": 1e-4 * step})
    found = {f.name: f.step for f in examine_run(copied).findings}
    assert set(found) == {"kl_negative", "entropy_collapse", "eos_rate_low"} - (
        set() if row["val/eos_rate"] < 0.5 else {"eos_rate_low"}
    )
    assert found["kl_negative"] < 12


def test_doctor_of_a_machine_and_of_recipes():
    assert "nothing found in: the machine" in call().stdout
    sound = call("toy")
    assert sound.exit_code == 0, sound.output
    assert "settings" in sound.stdout
    faulty = call("toy", "--set", "model.dropout=0.1")
    assert faulty.exit_code == 2
    assert faulty.stderr == "nplus: 1 error: dropout_set\n"
    assert "Set model.dropout=0." in faulty.stdout


def test_doctor_of_a_recipe_looks_at_a_local_model(copied):
    model = copied.stages()["sft"].model
    sets = [
        text
        for key in (f"model.model_name_or_path={model}", "data=posts.jsonl")
        for text in ("--set", key)
    ]
    result = call("real", *sets)
    assert result.exit_code == 0, result.output
    assert "settings, tokenizer, model" in result.stdout.replace("\n", " ")


def test_doctor_of_a_recipe_whose_positions_count_padding(copied, tmp_path):
    # Absolute positions: with `slots` a row's log-probs depend on its padding.
    tokenizer = DataDir(copied.stages()["data"].data).codec().tokenizer
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 800}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3))
    save_causal_lm(network, tmp_path / "gpt2", tokenizer)
    sets = [f"model.model_name_or_path={tmp_path / 'gpt2'}", "data=posts.jsonl"]
    arguments = ["real", *(text for key in sets for text in ("--set", key))]
    assert call(*arguments).exit_code == 0
    faulty = call(*arguments, "--set", "model.positions=slots")
    assert faulty.exit_code == 2
    assert faulty.stderr == "nplus: 1 error: positions_shifted\n"


def test_doctor_of_a_run_whose_models_are_gone(copied):
    for name in ("sft", "reward"):
        (copied.stages()[name].model / "model.safetensors").unlink()
    found = examine_run(copied).findings
    assert [(f.name, f.stage) for f in found] == [
        ("model_broken", "sft"),
        ("model_broken", "reward"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-recipe"], "unknown recipe 'no-such-recipe'"),
        ([".", "--json"], "not a run directory"),
        (["--set", "seed=2"], "--set and --config change a recipe"),
        (["real", "--set", "model.model_name_or_path=/no/model"], "no such directory"),
    ],
)
def test_wrong_input_is_one_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


# --- the report ---------------------------------------------------------------------------------


def test_findings_stand_in_the_report_escaped_and_once(copied):
    evil = "<script>alert('doctor')</script>"
    for stage in ("sft", "ppo"):
        copied.stages()[stage].event(
            "finding", name="pad_is_eos", severity="error", said=evil, cause="why", mend="how",
            numbers={"token": None}, stage=stage, step=0,
        )  # fmt: skip
    text = write_report(copied).read_text(encoding="utf-8")
    section = text.split('<section id="doctor">')[1].split("</section>")[0]
    assert section.count("pad_is_eos") == 1
    assert evil not in text
    assert "&lt;script&gt;alert" in section
    assert all(word in section for word in ("why", "how", "sft"))


def test_a_report_without_findings_has_no_such_section(sound):
    assert 'id="doctor"' not in write_report(sound[0]).read_text(encoding="utf-8")

"""`nplus details`: the list, one entry, and what a run has."""

import pytest
from typer.testing import CliRunner

from nplus.cli import app
from nplus.config.load import default_of, load_config
from nplus.details import details
from nplus.recipes import recipe
from nplus.runs import RunRoot


def said(*args):
    return CliRunner().invoke(app, ["details", *args])


@pytest.fixture
def run(tmp_path):
    """A run's index as `nplus run` writes it."""
    root = RunRoot(tmp_path / "run")
    root.path.mkdir()
    sets = ["ppo.whiten_rewards=true", "ppo.tempered=[old, reference]"]
    config = load_config(recipe("toy"), sets=sets).model_dump(mode="json")
    root.write_index("toy", config, {})
    return root.path


def test_the_list_has_every_entry_with_its_key():
    found = said()
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert [line.split()[0] for line in lines] == [entry.id for entry in details()]
    assert lines[0].endswith("always on")
    assert next(line for line in lines if line.startswith("D5")).endswith("reward.normalise")


def test_one_entry_tells_all_that_is_known():
    found = said("d5")
    for text in ("the paper's 15", "nplus.stages.reward.normalise", "--set reward.normalise=none"):
        assert text in found.output
    assert "mean by default" in found.output
    assert "test_item_9" in found.output


def test_a_run_shows_what_stands_otherwise(run):
    lines = {line.split()[0]: line for line in said("--run", str(run)).output.splitlines()}
    assert "changed  ppo.whiten_rewards=True (default False)" in lines["F6"]
    assert "changed  ppo.tempered=['old', 'reference']" in lines["E5"]
    assert "on       ppo.whiten_advantages=True" in lines["F7"]
    assert "not in this run (dpo.loss_type)" in lines["D9"]
    assert lines["A1"].endswith("always on")
    assert "changed" in said("F6", "--run", str(run)).output


def test_bad_input_ends_in_one_line():
    for args in (("Z9",), ("--run", "/nowhere")):
        found = said(*args)
        assert found.exit_code == 2
        assert len(found.output.strip().splitlines()) == 1


def test_defaults_of_components_count():
    assert default_of("ppo.optim.lr_scheduler_type") == "linear"
    assert default_of("sft.optim.lr_scheduler_type") == "cosine"
    assert default_of("dpo.beta") == 0.05
    with pytest.raises(KeyError):
        default_of("ppo.nothing")


def test_check_tells_profile_and_changed_details():
    found = CliRunner().invoke(
        app, ["check", "toy", "--set", "ppo.profile=verl", "--set", "ppo.kl_clamp=5"]
    )
    assert "# ppo.profile=verl, but kl_clamp=5.0 (not 10.0)" in found.output
    assert "score_step=eos" in found.output
    assert "E8   EOS trick" in found.output

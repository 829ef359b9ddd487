"""Verifiable rewards on the road: what policies are trained on."""

import re
import sys

import pytest
import torch

from nplus.evaluation.verifiable import source_of
from nplus.findings import read_findings
from nplus.runs.ledger import read_ledger
from nplus.stages.context import Context
from nplus.stages.online import score

MODULE = "def length(query, response, id):\n    return len(response)\n"
TERM = {"function": "road_rewards:length", "weight": 0.5, "at_least": 40, "penalty": 100.0}
LOOP = {
    "rounds": 1,
    "prompts": 4,
    "samples": 2,
    "response_length": 48,
    "train": {"batch": {"batch_size": 2, "micro_batch_size": 2}},
}
GROUP = {
    "total_episodes": 4,
    "batch_size": 4,
    "num_generations": 2,
    "micro_batch_size": 2,
    "sampling": {"response_length": 48},
}
RLOO = GROUP | {"algorithm": "rloo"}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "road_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def expected(text):
    return 0.5 * len(text) - (100.0 if len(text) < 40 else 0.0)


def test_policies_are_trained_on_the_sum(road_config, drive, tmp_path):
    scoring = {"reward_weight": 0.0, "terms": (TERM,)}
    config = road_config(scoring=scoring, online=LOOP, reinforce=RLOO)
    root = drive(config, tmp_path / "run", until="reinforce")
    for path in root.ledgers():
        for row in read_ledger(path):
            assert row.scores == pytest.approx([expected(text) for text in row.responses])
    for stage in ("ppo", "reinforce"):
        rows = root.stages()[stage].read_samples()[1]
        for row in rows:
            assert row["score"] == pytest.approx(expected(row["response"]))


def test_an_edited_function_is_another_reward(road_config, tmp_path):
    from nplus.stages.road import stage_config

    config = road_config(scoring={"terms": (TERM,)})
    before = stage_config("ppo", config)
    assert stage_config("ppo", config) == before
    (tmp_path / "road_rewards.py").write_text(MODULE.replace("len(response)", "-len(response)"))
    assert stage_config("ppo", config) != before
    assert "road_rewards" not in sys.modules


def test_the_module_of_a_function_is_found_in_packages_too(tmp_path):
    package = tmp_path / "own_rewards" / "maths"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "ends.py").write_text(MODULE)
    assert source_of("own_rewards.maths.ends:length") == package / "ends.py"
    assert source_of("own_rewards.maths:length") == package / "__init__.py"
    assert source_of("road_rewards:length") == tmp_path / "road_rewards.py"
    assert source_of("sys:exit") is None  # built in
    assert source_of("no.such.module:f") is None


def test_the_reward_model_alone_needs_no_other_key(road_config):
    from nplus.stages.road import stage_config

    assert "scoring" not in stage_config("ppo", road_config())
    changed = road_config(scoring={"terms": (TERM,)})
    assert "scoring" in stage_config("ppo", changed)
    assert "scoring" not in stage_config("reward", changed)
    assert "scoring" in stage_config(
        "round1_score",
        changed.model_copy(update={"online": road_config(online={"response_length": 48}).online}),
    )


RANDOM = """
import random

def drawn(query, response, id):
    with open("calls.txt", "a") as calls:
        print(id, response, file=calls)
    return random.SystemRandom().random()
"""


def test_a_function_is_asked_once_a_response_whatever_the_members(road_config, tmp_path):
    """Members of an ensemble differ in their own opinion alone."""

    class Says:
        def __init__(self, value):
            self.value = value

        def score(self, samples):
            return [self.value] * len(samples)

    (tmp_path / "road_rewards.py").write_text(RANDOM)
    term = {"function": "road_rewards:drawn", "weight": 2.0}
    config = road_config(scoring={"reward_weight": 0.5, "terms": (term,)})
    ctx = Context(config, torch.device("cpu"), None, {})
    piece = [{"id": name, "query": "q", "responses": ["a", "b", "a"]} for name in ("p", "q")]
    rows = score.scored(piece, {"one": Says(1.0), "other": Says(7.0)}, ctx)
    for row in rows:
        one, other = row["member_scores"]
        assert [b - a for a, b in zip(one, other, strict=True)] == pytest.approx([3.0] * 3)
        assert all(0.5 <= value < 2.5 for value in one)
        assert row["scorer_hashes"] == ["one", "other"]
    assert len({value for row in rows for value in row["member_scores"][0]}) == 6
    assert (tmp_path / "calls.txt").read_text().split("\n")[:-1] == [
        f"{name} {text}" for name in ("p", "q") for text in ("a", "b", "a")
    ]


FAILS = """
def fails(query, response, id):
    raise KeyError("always")
"""


def test_a_function_that_always_fails_is_seen(road_config, drive, tmp_path, monkeypatch):
    """In the journals, the results, the doctor's findings and beside the loop's scores."""
    notes = []
    monkeypatch.setattr(Context, "warn", lambda self, note: notes.append(note))
    (tmp_path / "road_rewards.py").write_text(FAILS + MODULE)
    fails = {"function": "road_rewards:fails"}
    stages = {"online": LOOP, "reinforce": RLOO, "online_dpo": GROUP}
    config = road_config(scoring={"failed": 0.0, "terms": (fails,)}, **stages)
    root = drive(config, tmp_path / "run", until="online_dpo")
    found = root.stages()
    for stage in ("ppo", "reinforce", "online_dpo"):
        rows = [row["metrics"] for row in found[stage].journal_rows()]
        assert [row["scoring/failed"] for row in rows] == [4.0] * len(rows)
        assert [row["scoring/failed_share"] for row in rows] == [1.0] * len(rows)
        told = found[stage].manifest().results["scoring"]
        assert told == {"failed": 4.0 * len(rows), "failed_share": 1.0}
        names = [each.name for each in read_findings(found[stage].journal_path, stage)]
        assert names.count("scoring_failed") == 1
    told = found["round1_score"].manifest().results
    assert (told["scoring/failed"], told["scoring/failed_share"]) == (8.0, 1.0)
    (note,) = (note for note in notes if "scoring.terms" in note)
    assert re.fullmatch(r"round1_score\S*: 100% of the calls of scoring.terms gave no value", note)

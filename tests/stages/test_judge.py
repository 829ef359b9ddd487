"""A language model as the verdict's judge, played by a function (Detail H2)."""

import re
import shutil

import pytest

from nplus.records import InputError
from nplus.stages import road, systems


class Chat:
    """Prefers the summary with more letters; answers nonsense every seventh time."""

    def __init__(self):
        self.asked = []

    def ask(self, prompt):
        self.asked.append(prompt)
        if len(self.asked) % 7 == 0:
            return "I would rather not say."
        a, b = (re.search(rf"Summary {s}\W*\n(.*)", prompt)[1] for s in "AB")
        return "One says more.\nPreferred: " + ("A" if len(a) >= len(b) else "B")

    each = staticmethod(map)


@pytest.fixture
def chat(monkeypatch):
    found = Chat()
    monkeypatch.setattr(systems, "chat_client", lambda config, cache: found)
    monkeypatch.setattr(road, "require_judge", lambda config: None)
    return found


@pytest.mark.detail("H2")
def test_the_verdict_of_a_language_model(finished, road_config, drive, tmp_path, chat):
    shutil.copytree(finished.path, tmp_path / "run")
    config = road_config(evaluate={"judge": "llm", "temperatures": (0.7,)})
    stages = drive(config, tmp_path / "run").stages()
    rows = stages["evaluate"].manifest().results["win_rates"]
    assert chat.asked
    for row in rows:
        if row["rate"] is not None:
            assert row["wins"] + row["ties"] + row["losses"] == row["n"]
        assert "position" in row
    whole = [row for row in rows if row["split"] == "test"]
    # Every pair is asked once; what names neither is neither a win nor a loss.
    assert sum(row["n"] + row["invalid"] for row in rows) == len(chat.asked)
    assert sum(row["invalid"] for row in rows) == len(chat.asked) // 7
    assert {(row["policy"], row["opponent"]) for row in whole} == {
        ("sft", "reference"),
        ("ppo", "reference"),
        ("ppo", "sft"),
    }


def test_another_judge_validates_the_rounds_anew(road_config):
    """The round that is returned is the judge's choice."""

    def key(name, **settings):
        config = road_config(online={"response_length": 48}, **settings)
        return road.stage_config(name, config)

    for name in ("round0_validate", "round1_validate", "evaluate"):
        asked = key(name, evaluate={"judge": "llm"})
        for other in ({"model": "another"}, {"order": "both"}):
            assert key(name, evaluate={"judge": "llm"}, judge=other) != asked, (name, other)
        assert key(name, evaluate={"judge": "llm"}, judge={"retries": 1}) == asked
        assert key(name) == key(name, judge={"model": "another"})


def test_a_judge_of_rounds_alone_is_asked_for_before_any_work(road_config, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = road_config(online={"response_length": 48}, evaluate={"judge": "llm"}, until="online")
    with pytest.raises(InputError, match="judge"):
        road.preflight(config)


def test_a_judge_that_cannot_be_asked_stops_the_run_before_any_work(
    road_config, drive, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"judge\.api_key_env"):
        drive(road_config(evaluate={"judge": "llm"}), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())

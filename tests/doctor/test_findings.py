"""The table of findings: whole, consistent with settings and guide, and able to cross the disk."""

import json
import math
import re
from pathlib import Path

import pytest

from nplus.config.load import known_keys
from nplus.findings import (
    KINDS,
    SEVERITIES,
    Finding,
    by_severity,
    findings_markdown,
    found,
    read_findings,
)
from nplus.runs import StageDir

ROOT = Path(__file__).parents[2]


def test_the_guide_holds_the_table():
    text = (ROOT / "docs" / "guides" / "doctor.md").read_text(encoding="utf-8")
    assert findings_markdown() in text, "run `make details`"


def test_every_kind_says_what_why_and_how_to_mend_it():
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    for kind in KINDS:
        assert kind.severity in SEVERITIES
        assert all(text.endswith(".") for text in (kind.what, kind.cause, kind.mend)), kind.name
        assert "|" not in kind.what + kind.cause + kind.mend


def test_every_setting_that_a_mend_names_exists():
    keys = set(known_keys())
    for kind in KINDS:
        named = re.findall(
            r"\b(?:data|tokenizer|model|compute|sft|reward|ppo|label)\.[a-z_.]+", kind.mend
        )
        named = [name.rstrip(".") for name in named if not name.startswith("model.eval")]
        assert [name for name in named if name not in keys] == [], kind.name


@pytest.mark.parametrize("stage", ["reinforce", "online_dpo"])
def test_a_mend_names_keys_of_the_stage_it_was_seen_in(stage: str):
    keys = set(known_keys())
    of_critics = {"value_useless"}
    for kind in KINDS:
        if kind.when not in ("start", "training") or kind.name in of_critics:
            continue
        mend = found(kind.name, "seen").seen_in(stage, 3).mend
        assert "ppo." not in mend, kind.name
        named = [name.rstrip(".") for name in re.findall(rf"\b{stage}\.[a-z_.]+", mend)]
        assert [name for name in named if name not in keys] == [], kind.name
    assert f"{stage}.num_iterations" in found("clip_fraction_high", "").seen_in(stage, 1).mend
    assert "ppo.kl_coef" in found("kl_large", "").seen_in("ppo", 1).mend
    assert found("kl_large", "").seen_in(stage, 4).place == f"{stage}, step 4"


def test_every_kind_is_made_somewhere():
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "src/nplus/stages").rglob("*.py")]
    assert [k.name for k in KINDS if not any(f'"{k.name}"' in text for text in sources)] == []


def test_a_finding_crosses_a_journal(tmp_path):
    where = StageDir(tmp_path)
    first = found("kl_negative", "-1 <nats>", stage="ppo", step=12, kl=-1.0, stderr=math.nan)
    where.journal(1, {"objective/kl": 0.0})
    where.event("finding", **first.row())
    with where.journal_path.open("a") as out:
        out.write('{"event": "finding", "na')  # a process that died
    [read] = read_findings(where.journal_path, "ppo")
    assert read.line == first.line
    assert read.numbers["kl"] == -1.0
    assert math.isnan(read.numbers["stderr"])
    assert "null" in json.dumps(first.row())
    where.log.rewind(10)  # a resumed stage finds it again
    assert list(read_findings(where.journal_path, "ppo")) == []


def test_the_worst_come_first():
    made = [found(name, "x") for name in ("golden_missing", "kl_large", "pad_is_eos")]
    assert [f.severity for f in by_severity(made)] == ["error", "warning", "note"]
    assert isinstance(made[0], Finding)
    with pytest.raises(KeyError):
        found("no_such_kind", "x")

"""A directory of its own for every malformed input, and the test that each has to pass."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nplus.cli import app

sys.path.append(str(Path(__file__).parent))

from zoo import POSTS, snapshot

MEND = re.compile(
    r"; |must |needs |name |set |write |choose |did you mean|tells more|lists|raise "
    r"|expected one of"
)
MET: Counter[str] = Counter()
"""Inputs by command, over this process."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with home, cache and temporary files inside what is watched."""
    where = tmp_path / "here"
    for name in ("cwd", "home", "cache", "tmp"):
        (where / name).mkdir(parents=True)
    for variable, name in (("HOME", "home"), ("XDG_CACHE_HOME", "cache"), ("TMPDIR", "tmp")):
        monkeypatch.setenv(variable, str(where / name))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(where / "tmp"))
    # what each stage asks git, the package metadata and the disk
    monkeypatch.setattr("nplus.runs.pipeline.code_version", lambda: "tested")
    monkeypatch.setattr("nplus.runs.pipeline.package_versions", dict)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.chdir(where / "cwd")
    return where / "cwd"


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures of nothing: drawing them takes seconds."""

    def savefig(figure, out, **options):
        out.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def call(place):
    """`call("run", "toy")`: the result of a command line, in this process."""
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def refused(place, call):
    """`refused(command)`: the one message of a command that must end with exit code 2 and leave
    every file below the working directory, home, cache and temporary files as it is."""

    def check(command, says=()):
        before = snapshot(place.parent)
        result = call(*command)
        told = f"exit code {result.exit_code}: {result.output[-3000:]}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"a traceback: {told}") from result.exception
        assert result.exit_code == 2, told
        assert snapshot(place.parent) == before
        assert "Traceback" not in result.output
        lines = result.stderr.splitlines()
        assert len(lines) == 1, told
        assert lines[0].startswith("nplus: "), told
        assert lines[0].isprintable(), told
        assert MEND.search(lines[0]), f"no mend: {told}"
        for part in says:
            assert part in lines[0], f"{part!r} is not in: {lines[0]}"
        MET[command[0]] += 1
        return lines[0]

    return check


@pytest.fixture(scope="session")
def good_model(tmp_path_factory):
    """A tiny network with its tokenizer, as save_pretrained leaves it."""
    from nplus.data.tokens import train_bpe
    from nplus.models.files import save_causal_lm
    from nplus.models.toy import build_toy

    codec = train_bpe([json.dumps(row) for row in POSTS], 300)
    model = build_toy(
        "0.3M", vocab_size=codec.size, eos_id=codec.eos_id, pad_id=codec.pad_id, seed=1
    )
    where = tmp_path_factory.mktemp("model") / "good"
    save_causal_lm(model, where, codec.tokenizer)
    return where


def pytest_sessionfinish(session):
    """A worker hands its counts over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["malformed"] = dict(MET)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    MET.update(getattr(node, "workeroutput", {}).get("malformed", {}))


def pytest_terminal_summary(terminalreporter):
    """How many malformed inputs were met, by command."""
    if MET:
        counts = ", ".join(f"{name} {count}" for name, count in MET.most_common())
        terminalreporter.write_line(f"malformed inputs refused: {sum(MET.values())} ({counts})")

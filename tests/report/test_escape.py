"""Whatever a run's texts hold, report, grid page and model cards show it and never run it."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from nplus.report import verdict, write_cards, write_report
from nplus.report.against import comparison
from nplus.report.grid_page import write_ablation
from nplus.runs import Manifest, RunRoot

SCRIPT = "<script>alert(1)</script>"
EVIL = (
    f"""{SCRIPT}"><img src=x onerror=alert(2)>'--><svg onload=alert(3)>[x](javascript:alert(4))"""
)
OUTSIDE = ("http:", "https:", "javascript:", "//", "file:")
KNOWN = {
    *("html", "head", "meta", "title", "link", "style", "body", "header", "p", "h1", "h2", "h3"),
    *("span", "nav", "a", "main", "section", "div", "b", "small", "details", "summary", "figure"),
    *("figcaption", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "br", "input"),
    *("select", "option", "noscript", "button", "article", "script"),
    *("svg", "g", "path", "text", "use", "defs", "clippath", "rect", "tspan", "title"),
}


def unsigned(where):
    """A stage's manifest without its own hash: it may be changed by hand."""
    found = json.loads(where.manifest_path.read_text(encoding="utf-8"))
    del found["digest"]
    return found


class Page(HTMLParser):
    """Tags, attributes, scripts and visible text, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.text = [], [], [], []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def harmless(text, scripts):
    """The page, after it has been looked at for anything that would run or be fetched."""
    page = Page(text)
    assert set(page.tags) <= KNOWN, set(page.tags) - KNOWN
    assert len(page.scripts) == scripts
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("href", "src", "xlink:href", "action", "srcset", "style"):
            assert not (value or "").strip().lower().startswith(OUTSIDE), (name, value)
    assert all("alert(" not in script for script in page.scripts[1:])
    return page


def tainted(value, keep=()):
    """Every text in a JSON value with evil behind it, but for those under the keys `keep`."""
    if isinstance(value, dict):
        return {k: item if k in keep else tainted(item, keep) for k, item in value.items()}
    if isinstance(value, list):
        return [tainted(item, keep) for item in value]
    return f"{value} {EVIL}" if isinstance(value, str) else value


STRUCTURE = ("policy", "stage", "key", "status", "started", "finished", "kind", "split", "role")


def taint(root, keep):
    """Evil in everything of a run that is text."""
    index = json.loads(root.index_path.read_text(encoding="utf-8"))
    index["recipe"] = EVIL
    index["config"] = {**tainted(index["config"]), EVIL: EVIL}
    root.index_path.write_text(json.dumps(index), encoding="utf-8")
    for where in root.stages().values():
        found = unsigned(where)
        found = tainted(found, keep) | {"packages": {EVIL: EVIL}, "error": EVIL}
        where.manifest_path.write_text(json.dumps(found), encoding="utf-8")
        for path in (where.table, where.token_view, *where.samples.glob("*.jsonl")):
            if path.is_file():
                lines = path.read_text(encoding="utf-8").split("\n")
                rows = [json.loads(line) for line in lines if line]
                lines = [json.dumps(tainted(row, keep)) + "\n" for row in rows]
                path.write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def no_drawing(monkeypatch):
    """Few figures: these are looked at by themselves."""

    def savefig(figure, out, **options):
        out.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.mark.parametrize(
    "keep", [STRUCTURE, ("stage", "key", "status", "started", "finished")], ids=["most", "all"]
)
def test_a_report_of_evil_texts_shows_them(build_run, tmp_path, keep, no_drawing):
    root = taint(build_run(tmp_path / "a'><img onerror=alert(5)>", rows=4), keep)
    page = harmless(write_report(root).read_text(encoding="utf-8"), scripts=2)
    shown = "".join(page.text)
    assert shown.count(SCRIPT) > 20
    assert "<img onerror=alert(5)>" in shown  # the run's name
    data = json.loads(page.scripts[0])
    assert EVIL in json.dumps(data, ensure_ascii=False).replace('\\"', '"')
    assert not re.search(r"[<>&]", page.scripts[0])


def test_the_figures_of_evil_names_show_them(build_run, tmp_path):
    """Whatever matplotlib draws as text stays text: also in comments and attributes."""
    root = build_run(tmp_path / "run", stages=("data", "sft", "evaluate"), rows=2)
    where = root.stages()["evaluate"]
    found = unsigned(where)
    rows = found["results"]["win_rates"]
    found["results"] = {
        **{key: found["results"][key] for key in ("judge", "split", "temperatures")},
        "win_rates": [{**rows[1], "opponent": EVIL, "length_matched": {}}],
        "reward_model": {"by_batch": [{"name": EVIL, "accuracy": 0.5, "n": 9}]},
    }
    where.manifest_path.write_text(json.dumps(found), encoding="utf-8")
    text = write_report(root).read_text(encoding="utf-8")
    page = harmless(text, scripts=2)
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert svgs
    assert not any(SCRIPT in svg for svg in svgs)
    assert sum("&lt;script&gt;" in svg for svg in svgs) >= 1
    assert SCRIPT in "".join(page.text)


def test_model_cards_of_evil_texts_hold_no_tag(build_run, tmp_path):
    root = taint(build_run(tmp_path / "run", rows=2), STRUCTURE)
    cards = write_cards(root)
    assert len(cards) == 4
    for card in cards:
        text = card.read_text(encoding="utf-8")
        spans = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)  # code shows tags as they are
        assert not re.search(r"<\s*[a-z/!]", spans, flags=re.I), spans
        assert not re.search(r"(?<!\\)\]\(", spans), spans
        assert text.count("\n---\n") == 1
        assert "alert(1)" in text


def test_a_terminal_takes_no_name_for_markup(build_run, tmp_path):
    """A file called `[/red].jsonl` would end the command with an error of rich's."""
    root = build_run(tmp_path / "run", rows=2)
    where = root.stages()["evaluate"]
    found = unsigned(where)
    for row in found["results"]["win_rates"]:
        row["opponent"] = "[/red][link=x]"
    where.manifest_path.write_text(json.dumps(found), encoding="utf-8")
    against = root.against("0" * 64)
    against.path.mkdir()
    Manifest.read(where.manifest_path).write(against.manifest_path)
    console = Console(file=io.StringIO(), width=200)
    console.print(verdict(RunRoot(root.path)))
    console.print(comparison(against))
    assert "[/red][link=x]" in console.file.getvalue()


def test_a_grid_of_evil_texts_shows_them(tmp_path, no_drawing):
    measures = ("win_rate", "kl", "length", "eos_rate", "greedy_length", "accuracy")
    nothing = dict.fromkeys(measures)
    value = {"value": 0.5, "low": None, "high": None, "n": 1, "seeds": [1], "posts": 3}
    data = {
        "command": f"nplus ablate {EVIL}\n```",
        "recipe": EVIL,
        "policy": EVIL,
        "seeds": [1],
        "baseline": dict.fromkeys(measures, value),
        "conditions": [{"name": EVIL, "title": EVIL, "sets": [EVIL], **nothing}],
        "cells": [
            {"name": EVIL, "seed": 1, "sets": [EVIL], "status": "failed", "error": EVIL}
            | {"seconds": 1.0, "stages": {"data": EVIL}}
        ],
    }
    write_ablation(tmp_path, data)
    page = harmless((tmp_path / "ablation.html").read_text(encoding="utf-8"), scripts=0)
    assert "".join(page.text).count(SCRIPT) >= 5
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    assert not re.search(r"<\s*[a-z/!]", outside, flags=re.I)
    assert "](" not in outside

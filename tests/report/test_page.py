"""The page: its numbers, its safety, its self-containment, and what a partial run shows."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from nplus.records import InputError
from nplus.report import write_report
from nplus.report.page import HERE, outline, safe_json
from nplus.runs import RunRoot

STAGES = ("data", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate")


class Scan(HTMLParser):
    """Collects scripts, what would be loaded, and the visible text."""

    def __init__(self):
        super().__init__()
        self.scripts, self.loads, self.text, self._inside = [], [], [], ""
        self.counts = {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self._inside = tag
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        for name, value in attrs:
            local = (value or "").startswith(("#", "data:"))
            if name in ("src", "href", "xlink:href", "srcset", "action") and not local:
                self.loads.append(value)

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        else:
            self.text.append(data)


def scan(root):
    page = Scan()
    page.feed(write_report(root).read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def html(build_run, tmp_path_factory):
    """The page of a complete run."""
    root = build_run(tmp_path_factory.mktemp("page") / "run")
    return write_report(root).read_text(encoding="utf-8")


@pytest.fixture
def page(html):
    found = Scan()
    found.feed(html)
    return found


def test_the_numbers_of_the_run_are_on_the_page(page):
    text = " ".join(" ".join(page.text).split())
    for number in (
        "62.3% [58.3, 66.3]",  # against the reference
        "74.2% [70.2, 78.2]",  # against SFT
        "59.3% [54.3, 64.3]",  # at matched length
        "78.1% [75.5, 80.7]",  # reward model
        "85.1%",  # Bayes
        "95.7% [94.1, 97.3]",  # swaps
        "-2.1 points [-3.4, -0.8]",  # wrong facts
        "64.7% [60.7, 68.7] of 600 posts; where the judge does not tie, on 77.6%",  # agreement
        "84.8% [81.8, 87.8] of the tokens of 6 responses",  # token view
        "0.347",  # ROUGE-L
        "612.3",  # seconds of a stage
        "1.91",  # peak memory
        "abc1234",  # code version
        "ab" * 32,  # an input's hash
        "learning_rate: 3e-05",
    ):
        assert number in text, number
    assert page.counts["svg"] > 20


def test_text_of_the_run_is_shown_and_never_run(page):
    assert [attrs.get("id") for attrs, _ in page.scripts] == ["data", None]
    data = json.loads(page.scripts[0][1])
    first = data["posts"][0]
    assert first["title"] == "title <script>alert('post')</script>"
    assert first["post"].endswith("\u2028 </SCRIPT ><!--")
    assert not re.search(r"[<>&\u2028\u2029]", page.scripts[0][1])
    assert "innerHTML" not in page.scripts[1][1]
    assert any("<script>alert('post')</script>" in text for text in page.text)  # the rollouts'


def test_text_from_everywhere_is_escaped(make_run):
    evil = "</script>]]>&lt;$x^2$ \u2028 <b> <!-- --><img src=x>"
    root = make_run()
    where = root.stages()["evaluate"]
    manifest = where.manifest()
    results = manifest.results
    results["verdict"] = results["judge"] = evil
    results["win_rates"][1]["opponent"] = evil
    results["reward_model"]["by_batch"][0]["name"] = evil
    results["copy"] = {evil: 0.5}
    replace(manifest, error=evil, device=evil).write(where.manifest_path)
    root.write_index(evil, {evil: {evil: evil}}, {n: s.path.name for n, s in root.stages().items()})
    page = scan(root)
    assert len(page.scripts) == 2
    assert "img" not in page.counts
    assert evil in "".join(page.text)


def test_json_for_a_script_survives_the_round_trip():
    value = {"a": ["</script>", "&", "\u2028", float("nan"), 1.5], "b": {"c": ("x", None)}}
    text = safe_json(value)
    expected = {"a": ["</script>", "&", "\u2028", None, 1.5], "b": {"c": ["x", None]}}
    assert json.loads(text) == expected
    assert "<" not in text


def test_nothing_is_loaded_from_anywhere(page):
    assert page.loads == []
    text = "".join(script for _, script in page.scripts)
    style = HERE / "page.css"
    assert not re.search(r"fetch\(|XMLHttp|import\(|https?://", text)
    assert not re.search(r"url\(|@import", style.read_text())


def test_every_reference_inside_a_figure_is_answered_by_one_id(html):
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'(?:url\(|href=")#([^")]+)', html))
    assert links <= set(ids)


@pytest.mark.parametrize("count", range(len(STAGES)))
def test_a_run_that_stopped_anywhere_has_a_report(make_run, count):
    page = scan(make_run(stages=STAGES[:count]))
    text = unescape(" ".join(page.text))
    assert "No verdict" in text
    assert all(stage in text for stage in STAGES[:count])
    assert "nan" not in text.lower().split()


def test_a_running_stage_is_told_by_name_and_step(make_run):
    root = make_run(stages=STAGES[:7])
    where = root.stages()["ppo"]
    replace(where.manifest(), status="running", results={}).write(where.manifest_path)
    text = " ".join(scan(root).text)
    assert "No verdict yet: stage ppo is running at step 150." in text


def test_lines_cut_short_are_told_and_the_rest_is_shown(make_run):
    root = make_run()
    for name, file in (("ppo", "journal.jsonl"), ("evaluate", "table.jsonl")):
        with (root.stages()[name].path / file).open("a") as out:
            out.write('{"step": 151, "metr')
    page = scan(root)
    text = " ".join(page.text)
    assert "KL from SFT" in text  # drawn from the journal's whole lines
    assert "table.jsonl: read up to a line that is cut short" in text
    assert len(json.loads(page.scripts[0][1])["rows"]) == 12


def test_the_same_run_gives_the_same_page_and_leaves_no_other_file(make_run):
    root = make_run()
    first = write_report(root).read_bytes()
    assert write_report(root).read_bytes() == first
    assert not list(root.path.glob(".report*"))


def test_a_post_is_embedded_once_for_all_temperatures(page):
    data = json.loads(page.scripts[0][1])
    assert [len(data["posts"]), len(data["rows"]), data["total"]] == [6, 12, 12]
    assert data["rows"][0]["s"]["sft"]["proxy"] is None  # NaN in the table


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        write_report(RunRoot(tmp_path))


def test_outline_reads_as_yaml():
    yaml = pytest.importorskip("yaml")
    config = {"a": {"b": 3e-5, "c": None, "d": [1, 2]}, "e": "x: y", "f": {}, "g": True, "h": "toy"}
    read = yaml.safe_load(outline(config))
    assert {**read, "a": {**read["a"], "b": float(read["a"]["b"])}} == config


@pytest.mark.detail("H5")
def test_tokens_are_coloured_by_class_and_told_on_a_touch(html):
    found = re.findall(
        r'<span class="tok ([a-z ]+)" tabindex="0" data-tip="([^"]*)">([^<]*)</span>', html
    )
    assert [(kind, text) for kind, _, text in found[:4]] == [
        ("unchanged", " my"),
        ("marginal", " &lt;script&gt;alert(&#39;post&#39;)&lt;/script&gt;"),
        ("shifted", " bike"),
        ("unchanged eos", "EOS"),
    ]
    assert len(found) == 8
    assert unescape(found[2][1]).startswith("first choice ' bike', rank 7 for SFT, whose own are")
    legend = re.search(r'<p class="legend">.*?</p>', html)[0]
    assert "SFT&#39;s choice 2 to 3" in legend
    assert "SFT&#39;s choice 4 or later" in legend
    style = (HERE / "page.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for name in ("--t1", "--t2", "--t3"):
        assert name in light
        assert name in dark


def test_a_run_without_dpo_says_nothing_of_it(html):
    assert "DPO" not in html.split("<script", 1)[0]


def test_completions_from_elsewhere_are_shown_with_what_was_left_out(make_run):
    root = make_run()
    where = root.against("c" * 64)
    where.path.mkdir()
    evaluate = root.stages()["evaluate"].manifest()
    row = {"policy": "ppo", "opponent": "<b>.jsonl", "split": "test", "temperature": 0.01}
    row |= {"wins": 3, "ties": 1, "losses": 0, "n": 4, "rate": 0.875, "low": 0.5, "high": 0.9}
    results = {"name": "<b>.jsonl", "judge": "gold", "win_rates": [row], "read": 9, "unmatched": 4}
    results |= {"matched": {"test": 4}, "duplicates": 1, "other_query": 2}
    inputs = ({"role": "evaluate", "path": "", "hash": evaluate.key},)
    replace(evaluate, stage="against", results=results, inputs=inputs).write(where.manifest_path)
    text = " ".join(" ".join(scan(root).text).split())
    for part in (
        "87.5% [50.0, 90.0]",
        "<b>.jsonl: 9 rows, 4 test posts compared; 4 match no post of the verdict; 1 are of a post",
        "2 rows have a post's id but another query",
        where.path.name,
    ):
        assert part in text, part


def test_what_the_data_check_found_is_shown_as_text(build_run, tmp_path):
    root = build_run(tmp_path / "run")
    evil = "<script>alert('row')</script>"
    found = {
        **{"kind": "duplicate_row", "severity": "warning", "count": 1234, "of": 5000},
        **{"unit": "rows", "share": 0.2468, "cause": "the same row again", "mend": "remove it"},
        "rows": [{"file": f"{evil}.jsonl", "row": 7, "split": "train", "field": "", "why": "x"}],
    }
    lengths = {"unit": "tokens", "query": None, "response": None, "truncated": None, "eos": None}
    root.stages()["data"].write_data_check(
        {"rows": 5000, "findings": [found], "lengths": lengths, "length_bias": None}
    )
    page = scan(root)
    text = " ".join(page.text)
    for part in ("Data check: data", "duplicate_row", "1,234", "24.68% of rows", "remove it"):
        assert part in text
    assert f"{evil}.jsonl:7" in text
    assert not any("alert('row')" in script for _, script in page.scripts)
    root.stages()["data"].data_check_path.write_text("{torn", encoding="utf-8")
    assert "no data check is shown" in " ".join(scan(root).text)

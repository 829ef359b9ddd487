"""Run directories, grids and completions: what other commands left, damaged since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo import Case, Make, both, folder, jsonl, link, pipe, sets, text

TINY = sets(
    "data.world={pretrain: 16, train: 16, valid: 6, test: 4, heldout: 2, news: 2}",
    "data.max_response_tokens=60",
    "data.max_query_tokens=320",
    "tokenizer.vocab_size=600",
    "pretrain.batch={batch_size: 16, micro_batch_size: 16}",
    "sft.batch={batch_size: 16, micro_batch_size: 16}",
    "sample.prompts=4",
    "sample.valid_prompts=2",
    "label.pairs=8",
    "label.valid_pairs=6",
    "reward.batch={batch_size: 8, micro_batch_size: 8}",
    "reward.normalise_rows=8",
    "ppo.total_episodes=4",
    "ppo.batch_size=4",
    "ppo.micro_batch_size=4",
    "ppo.sampling.response_length=60",
    "evaluate.response_length=60",
    "evaluate.max_rows=3",
    "evaluate.temperatures=[0.7]",
    "compute.side_by_side=false",
    "model.attn_implementation=sdpa",
)
RUN = ("run", "toy:tiny", *TINY, "--out", "r")
REPORT = ("report", "r")
DETAILS = ("details", "F7", "--run", "r")
AGAINST = ("evaluate", "r", "--against", "theirs.jsonl")
SECTIONS = ("evaluate", "r", "--sections", "pairs.jsonl")
Damage = Callable[[Path], object]


def stage(place: Path, name: str) -> Path:
    """The directory of a stage."""
    return next((place / "r").glob(f"{name}-*"))


def in_stage(name: str, file: str, damage: Callable[[Path], object]) -> Make:
    """Damages a file of a stage."""
    return lambda place: damage(stage(place, name) / file)


def put(content: str | bytes) -> Callable[[Path], object]:
    """Other content."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(raw)


def cut(path: Path) -> None:
    """Half of it."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def changed(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Other JSON: what `change` returns, or the same after it."""

    def damage(path: Path) -> None:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = change(found) or found
        path.write_text(json.dumps(found), encoding="utf-8")

    return damage


def line(number: int, change: Callable[[Any], Any] | str) -> Callable[[Path], object]:
    """Another line of a JSONL file."""

    def damage(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        if isinstance(change, str):
            lines[number - 1] = change
        else:
            row = json.loads(lines[number - 1])
            lines[number - 1] = json.dumps(change(row) or row)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return damage


def gone(path: Path) -> None:
    path.unlink()


def index(name: str, change: Callable[[Any], Any] | str | bytes, *says: str) -> list[Case]:
    """A damaged run.json, for every command that reads one."""
    damage = changed(change) if callable(change) else put(change)
    return [
        Case(f"{command[0]}: run.json {name}", command, ("run.json", *says), make)
        for command in (REPORT, DETAILS, AGAINST, RUN)
        for make in [lambda place: damage(place / "r" / "run.json")]
    ]


def set_stage(where: Any, name: str = "evaluate") -> Callable[[Any], Any]:
    return lambda found: found["stages"].update({name: where})


INDEX = [
    *index("empty", "", "not valid JSON", "run again"),
    *index("broken", '{"recipe": "toy', "not valid JSON"),
    *index("a list", "[]", "found list"),
    *index("null", "null", "found NoneType"),
    *index("not UTF-8", b"\xff\xfe{}", "not valid JSON"),
    *index("deep", "[" * 200_000, "not valid JSON"),
    *index("without stages", lambda found: found.pop("stages") and None, "lacks stages"),
    *index("stages a list", lambda found: found.update(stages=[]), "stages is list"),
    *index("config a text", lambda found: found.update(config="x"), "config is str"),
    *index("recipe a number", lambda found: found.update(recipe=7), "recipe is int"),
    *index("auto a list", lambda found: found.update(auto=[1]), "auto is list"),
    *index("leads out", set_stage("../../etc"), "'../../etc'", "no directory of this run"),
    *index("leads to the root", set_stage("/etc"), "'/etc'", "no directory of this run"),
    *index("leads up", set_stage(".."), "'..'", "no directory of this run"),
    *index("leads nowhere", set_stage(""), "''", "no directory of this run"),
    *index("leads to a number", set_stage(7), "7", "no directory of this run"),
    *index("names a stage ..", set_stage("x-1", "../x"), "'../x'"),
]

BROKEN_MANIFESTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("empty", put(""), ("not valid JSON", "remove", "run again")),
    ("cut short", cut, ("not valid JSON",)),
    ("a list", put("[]"), ("found list",)),
    ("without a key", changed(lambda found: found.pop("key") and None), ("key",)),
    ("with a key unknown", changed(lambda found: found.update(new=1)), ("new",)),
    ("status a number", changed(lambda found: found.update(status=1)), ("status is int",)),
    ("results a list", changed(lambda found: found.update(results=[])), ("results is list",)),
    ("inputs a text", changed(lambda found: found.update(inputs="x")), ("inputs is str",)),
    ("inputs of texts", changed(lambda found: found.update(inputs=["x"])), ("inputs",)),
    ("finished some day", changed(lambda found: found.update(finished="soon")), ("finished",)),
    ("seconds null", changed(lambda found: found.update(seconds=None)), ("seconds is null",)),
    ("not UTF-8", put(b"\xff\xfe"), ("not valid JSON",)),
)
MANIFESTS = [
    Case(
        f"{command[0]}: manifest {name}",
        command,
        ("manifest.json", *says),
        in_stage("evaluate", "manifest.json", damage),
    )
    for command in (REPORT, AGAINST, RUN)
    for name, damage, says in BROKEN_MANIFESTS
]


def results(name: str, change: Callable[[Any], Any], *says: str) -> Case:
    """Results of the evaluation that none writes."""
    damage = changed(lambda found: change(found["results"]) and None)
    return Case(
        f"report: {name}",
        REPORT,
        ("manifest.json", *says, "run again"),
        in_stage("evaluate", "manifest.json", damage),
    )


RESULTS = [
    results("systems a text", lambda r: r.update(systems="x"), "systems is text"),
    results("systems of texts", lambda r: r.update(systems=["x"]), "systems[0] is text"),
    results("win rates of null", lambda r: r.update(win_rates=[None]), "win_rates holds null"),
    results("a rate of text", lambda r: r["win_rates"][0].update(rate="x"), "win_rates[0].rate"),
    results("a low of a list", lambda r: r["win_rates"][0].update(low=[1]), "win_rates[0].low"),
    results("the judge a number", lambda r: r.update(judge=7), "judge is a number"),
    results("no temperature", lambda r: r["systems"][0].pop("temperature"), "lacks temperature"),
    results("a model of text", lambda r: r.update(reward_model="x"), "reward_model is text"),
    results("shares of text", lambda r: r.update(token_view=[7]), "token_view[0]"),
    results("copy a list", lambda r: r.update(copy=[1]), "copy is a list"),
    results("temperatures of text", lambda r: r.update(temperatures=["x"]), "temperatures[0]"),
]


def theirs(name: str, rows: Any, *says: str) -> Case:
    """Completions from elsewhere."""
    make = rows if callable(rows) else jsonl("theirs.jsonl", rows)
    return Case(f"evaluate: {name}", AGAINST, ("theirs.jsonl", *says), make)


COMPLETIONS = [
    theirs("no completions", lambda place: None, "no such file", "name a JSONL file"),
    theirs("a folder of them", folder("theirs.jsonl"), "no file that can be read"),
    theirs("a link to nothing", link("theirs.jsonl", "gone"), "no such file"),
    theirs("a pipe", pipe("theirs.jsonl"), "no file that can be read"),
    theirs("cannot be read", link("theirs.jsonl", "/proc/self/mem"), "cannot read it"),
    theirs("empty completions", text("theirs.jsonl", ""), "holds no rows", "each needs"),
    theirs("broken JSON", ["{"], "line 1: not valid JSON"),
    theirs("a list", ["[1]"], "line 1", "found list"),
    theirs("CSV", ["id,completion", "a,b"], "line 1: not valid JSON"),
    theirs("UTF-16", text("theirs.jsonl", '{"id": 1}\n'.encode("utf-16")), "line 1: not UTF-8"),
    theirs("deep", ["[" * 200_000], "line 1"),
    theirs("no text", [{"id": "a"}], "line 1", "rename the completion's column"),
    theirs("a text of null", [{"id": "a", "completion": None}], "`completion` is text"),
    theirs("a text of lists", [{"id": "a", "summary": []}], "`summary` is text", "mend or remove"),
    theirs("neither id nor query", [{"completion": "x"}], "line 1", "add one that says"),
    theirs("an id of lists", [{"id": [], "completion": "x"}], "`id` is text"),
    theirs("an id that is true", [{"id": True, "completion": "x"}], "`id` is text"),
    theirs("a query of numbers", [{"query": 7, "completion": "x"}], "`query` is text"),
    theirs("half a surrogate pair", [{"id": "a", "completion": "\ud800"}], "surrogate"),
    theirs("of no post of the run", [{"id": "none", "completion": "x"}], "none of its 1 rows"),
]
GOOD = jsonl("theirs.jsonl", [{"id": "none", "completion": "x"}])


def judged(name: str, damage: Make, *says: str) -> Case:
    """A run that others' completions cannot be set against."""
    return Case(f"evaluate: {name}", AGAINST, says, both(GOOD, damage))


EVALUATIONS = [
    judged("no table", in_stage("evaluate", "table.jsonl", gone), "no finished evaluation"),
    judged("an empty table", in_stage("evaluate", "table.jsonl", put("")), "holds no rows"),
    judged(
        "a table cut short",
        in_stage("evaluate", "table.jsonl", cut),
        "table.jsonl, line",
        "not valid",
    ),
    *(
        judged(
            f"a table row {name}",
            in_stage("evaluate", "table.jsonl", line(2, change)),
            "table.jsonl, line 2",
            *says,
        )
        for name, change, says in (
            ("of a list", "[]", ("found list",)),
            ("of nothing", "{}", ("id", "remove its directory")),
            ("without a query", lambda row: row.pop("query") and None, ("query",)),
            ("with scores of text", lambda row: row.update(scores="x"), ("scores",)),
            ("without a score", lambda row: row["scores"].pop("ppo") and None, ("ppo",)),
            ("with a text of null", lambda row: row.update(ppo=None), ("ppo",)),
            ("with a temperature of text", lambda row: row.update(temperature="x"), ("temper",)),
            ("with fields of text", lambda row: row.update(fields="x"), ("fields",)),
        )
    ),
    judged(
        "an evaluation that runs",
        in_stage("evaluate", "manifest.json", changed(lambda m: m.update(status="running"))),
        "no finished evaluation",
    ),
    judged(
        "a config of another version",
        lambda place: changed(lambda f: f.update(config={"recipe": "toy:tiny", "old": 1}))(
            place / "r" / "run.json"
        ),
        "theirs.jsonl",
    ),
]

ROW = {"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "donotanswer"}


def rows(name: str, content: Any, *says: str, scorer: tuple[str, ...] = ()) -> Case:
    """Comparisons with subsets."""
    make = content if callable(content) else jsonl("pairs.jsonl", content)
    return Case(f"evaluate: {name}", (*SECTIONS, *scorer), says, make)


BY_SECTION = [
    rows("no comparisons", lambda place: None, "pairs.jsonl: no such file", "name a JSONL or"),
    rows("a folder of comparisons", folder("pairs.jsonl"), "no file that can be read"),
    rows("empty comparisons", text("pairs.jsonl", ""), "pairs.jsonl: holds no rows", "subset"),
    rows("comparisons broken", [ROW, "{"], "pairs.jsonl, line 2: not valid JSON"),
    rows("no subset", [ROW, {**ROW, "subset": None}], "line 2", "'subset'", "name the subset"),
    rows("a subset of lists", [{**ROW, "subset": []}], "line 1: field 'subset' is list"),
    rows("a subset misspelt", [{**ROW, "subset": "donotanser"}], "line 1", "mean 'donotanswer'?"),
    rows("a subset unknown", [{**ROW, "subset": "mine"}], "line 1", "'mine'", "alpacaeval-easy"),
    rows("an own subset in Chat", [{**ROW, "subset": "mine", "section": "Chat"}], "'mine'", "own"),
    rows("a section moved", [{**ROW, "section": "Chat"}], "line 1", "'Safety', not 'Chat'"),
    rows("a section of numbers", [{**ROW, "section": 1.5}], "line 1: field 'section' is float"),
    rows(
        "two sections of a subset",
        [{**ROW, "subset": "x", "section": "one"}, {**ROW, "subset": "x", "section": "two"}],
        "line 2",
        "'two' here, and of 'one' above",
    ),
    rows("no rejected", [{"prompt": "Q", "chosen": "a", "subset": "shp"}], "line 1", "rejected"),
    rows("an empty chosen", [{**ROW, "chosen": " "}], "line 1: field 'chosen' is empty"),
    rows("a prompt of null", [{**ROW, "prompt": None}], "line 1: field 'prompt' is null"),
    rows("every row too long", [{**ROW, "prompt": "Q " * 999}], "every row of pairs.jsonl was"),
    rows(
        "no pairwise model", [ROW], "'preference'", "preference={}", scorer=("--with", "preference")
    ),
    rows("an ensemble of one", [ROW], "reward.members=2", scorer=("--with", "ensemble")),
    rows(
        "a reward model that runs",
        both(
            jsonl("pairs.jsonl", [ROW]),
            in_stage("reward", "manifest.json", changed(lambda m: m.update(status="running"))),
        ),
        "no finished stage 'reward'",
        "nplus run toy:tiny",
    ),
    Case("evaluate: neither file", ("evaluate", "r"), ("--against FILE or --sections FILE",)),
    Case(
        "evaluate: both files",
        (*AGAINST, "--sections", "pairs.jsonl"),
        ("--against FILE or --sections FILE",),
    ),
    Case("evaluate: --with alone", (*AGAINST, "--with", "reward"), ("name --sections",)),
]

OTHERS = [
    Case("report: a file", ("report", "f"), ("f: not a run directory",), text("f", "x")),
    Case("report: a link to nothing", ("report", "l"), ("l: not a run",), link("l", "gone")),
    Case("report: an empty folder", ("report", "d"), ("d: not a run directory",), folder("d")),
    Case("ledger: a file", ("ledger", "f"), ("f: not a run directory",), text("f", "x")),
    Case("ledger: an empty folder", ("ledger", "d"), ("d: not a run directory",), folder("d")),
    Case("ledger: a run without rounds", ("ledger", "r"), ("r: no ledger yet", "nplus iterate")),
    Case(
        "ledger: a damaged index",
        ("ledger", "r", "SELECT 1"),
        ("run.json", "not valid JSON"),
        lambda place: put("{")(place / "r" / "run.json"),
    ),
    Case(
        "run: a run of another recipe",
        RUN,
        ("holds a run of recipe 'real'", "--out"),
        lambda place: changed(lambda f: f.update(recipe="real"))(place / "r" / "run.json"),
    ),
]


def grid(name: str, content: Any, *says: str) -> Case:
    """A damaged grid.json."""
    whole = content if isinstance(content, str) else json.dumps(content)
    return Case(
        f"ablate: grid.json {name}",
        ("ablate", "F7", "--recipe", "toy:tiny", "--seeds", "1", "--jobs", "1", "--out", "g"),
        ("g", *says),
        text("g/grid.json", whole),
    )


CELL = {
    **{"name": "baseline", "sets": [], "seed": 1, "key": "k", "status": "complete", "error": ""},
    **{"traceback": "", "seconds": 1.0, "stages": {"data": "data-00000000"}},
}
STATE = {"kind": "ablate", "recipe": "toy:tiny", "cells": [CELL]}


def cell(**other: Any) -> dict[str, Any]:
    return {**STATE, "cells": [{**CELL, **other}]}


GRIDS = [
    grid("empty", "", "grid.json: not valid JSON", "remove it"),
    grid("broken", "{", "grid.json: not valid JSON"),
    grid("a list", [], "grid.json", "found list"),
    grid("of nothing", {}, "grid.json: kind is null"),
    grid("of another command", {**STATE, "kind": "scale"}, "holds the grid of `nplus scale`"),
    grid("of another recipe", {**STATE, "recipe": "toy"}, "'toy'", "--out"),
    grid("without cells", {**STATE, "cells": 7}, "cells is int"),
    grid("a cell of text", {**STATE, "cells": ["x"]}, "cell 1"),
    grid("a cell of nothing", {**STATE, "cells": [{}]}, "cell 1"),
    grid("a seed that leads out", cell(seed="../1"), "cell 1"),
    grid("a stage that leads out", cell(stages={"data": "../../x"}), "cell 1"),
    grid("stages of a list", cell(stages=["a"]), "cell 1"),
    grid("seconds of text", cell(seconds="long"), "cell 1"),
    grid("a cell of another version", cell(new=1), "cell 1"),
    Case(
        "ablate: a run in it is damaged",
        ("ablate", "F7", "--recipe", "toy:tiny", "--seeds", "1", "--jobs", "1", "--out", "g"),
        ("seed-1/run.json: not valid JSON", "run again"),
        both(text("g/grid.json", json.dumps(STATE)), text("g/seed-1/run.json", "{")),
    ),
]


def resumed(
    name: str, stage_name: str, file: str, damage: Any, *says: str, again: str = ""
) -> Case:
    """A finished run of which one stage is to be done again, from what an earlier one left."""
    later = {"label": "reward", "data": "label", "sample": "label", "reward": "ppo"}
    again = again or later[stage_name]
    other = {
        "reward": "reward.normalise_rows=4",
        "label": "label.pairs=4",
        "ppo": "ppo.kl_coef=0.5",
    }[again]
    command = ("run", "toy:tiny", *TINY, *sets(other), "--out", "r")
    shown = file.removesuffix("/tokenizer.json")
    return Case(f"run: {name}", command, (shown, *says), in_stage(stage_name, file, damage))


STAGES = [
    resumed("comparisons cut", "label", "comparisons.jsonl", cut, "line", "not valid"),
    resumed("comparisons gone", "label", "comparisons.jsonl", gone, "no such file"),
    resumed("a comparison of nothing", "label", "comparisons.jsonl", line(1, "{}"), "line 1"),
    resumed(
        "a choice of text",
        "label",
        "comparisons.jsonl",
        line(2, lambda row: row.update(choice="1")),
        "line 2",
        "'choice' is str",
    ),
    resumed(
        "one response",
        "label",
        "comparisons.jsonl",
        line(2, lambda row: row.update(responses=["a"])),
        "line 2",
        "'responses'",
    ),
    resumed("samples cut", "sample", "completions.jsonl", cut, "line", "not valid"),
    resumed("posts cut", "data", "data/train.jsonl", cut, "line", "not valid"),
    resumed(
        "a post of null",
        "data",
        "data/train.jsonl",
        line(1, lambda row: row.update(response=None)),
        "line 1",
        "'response' is null",
    ),
    resumed("facts cut", "data", "data/facts.jsonl", cut, "line"),
    resumed("a fact sheet of nothing", "data", "data/facts.jsonl", line(1, "{}"), "line 1"),
    resumed(
        "tokenizer cut",
        "data",
        "data/tokenizer/tokenizer.json",
        cut,
        again="reward",
    ),
    resumed("a model cut", "reward", "model/model.safetensors", cut, "copy or save"),
    resumed("a config cut", "reward", "model/config.json", cut, "not valid JSON"),
]


def tuned(content: bytes) -> Make:
    """A tuning of this machine in the user's cache."""

    def make(place: Path) -> None:
        from nplus.stages.tuning.cache import path_of, this_machine

        path = path_of(this_machine("cpu"))
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

    return make


TUNINGS = [
    Case(
        f"tune: a tuning {name}",
        ("tune", "--show", "--device", "cpu"),
        (".json: ignored, it is damaged or old", "run `nplus tune`"),
        tuned(content),
    )
    for name, content in (
        ("of nothing", b""),
        ("cut short", b'{"version": 1, "mach'),
        ("that is a list", b"[]"),
        ("of other bytes", b"\xff\xfe\0"),
        ("of endless nesting", b"[" * 200_000),
        ("of another version", b'{"version": 99}'),
        ("without a machine", b'{"version": 1}'),
    )
]

CASES = [
    *TUNINGS,
    *INDEX,
    *MANIFESTS,
    *RESULTS,
    *COMPLETIONS,
    *EVALUATIONS,
    *BY_SECTION,
    *OTHERS,
    *GRIDS,
    *STAGES,
]

NO_TEXT = b"\xff\xfe\0"
TOLERATED: list[tuple[str, Make, str]] = [
    ("a table cut short", in_stage("evaluate", "table.jsonl", cut), "cut short"),
    ("a table of lists", in_stage("evaluate", "table.jsonl", line(1, "[]")), "cut short"),
    (
        "a table row of odd kinds",
        in_stage("evaluate", "table.jsonl", line(1, lambda row: row.update(scores=7))),
        "line 1 left out",
    ),
    (
        "a token view of odd kinds",
        in_stage("evaluate", "token_view.jsonl", line(1, lambda row: row.update(tokens=7))),
        "line 1 left out",
    ),
    (
        "a table of other bytes",
        in_stage("evaluate", "table.jsonl", put(b"\xff\xfe\0")),
        "cut short",
    ),
    ("a journal of other bytes", in_stage("ppo", "journal.jsonl", put(NO_TEXT)), ""),
    (
        "a journal of odd kinds",
        in_stage(
            "ppo",
            "journal.jsonl",
            put('[]\n7\n{"metrics": 7, "step": 1}\n{"metrics": {}, "step": "x"}\n'),
        ),
        "",
    ),
    ("a journal cut short", in_stage("ppo", "journal.jsonl", cut), ""),
    (
        "samples cut short",
        lambda place: cut(next((stage(place, "ppo") / "samples").iterdir())),
        "no samples are shown",
    ),
    (
        "samples of lists",
        lambda place: put("[]\n")(next((stage(place, "ppo") / "samples").iterdir())),
        "no samples are shown",
    ),
    (
        "samples of no step",
        lambda place: put("{}\n")(stage(place, "ppo") / "samples" / "step_x.jsonl"),
        "",
    ),
]
"""What a process that died may leave: the report names it, and shows the rest."""

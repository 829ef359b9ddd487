"""What a grid shows: a table for the terminal, Markdown, a page, pictures. All from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich import box
from rich.table import Table
from rich.text import Text

from nplus.report.card import tagless
from nplus.report.figures import Panel
from nplus.report.grid_figures import (
    ACCURACIES,
    MEASURES,
    SERIES,
    Measure,
    around,
    ends,
    forest,
    scaling,
    scaling_picture,
    signed,
)
from nplus.report.tables import DASH, plain, system_name
from nplus.runs.storage import replace_bytes, write_json

HERE = Path(__file__).resolve().parent
FEW = MEASURES[:3]
"""What a terminal has room for."""
SHARE = Measure("", "", "", "%", 100, 1)
"""A rate or accuracy of a size."""
SHORT = 160
"""Characters of an error that a table shows; the rest is in the cells."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A grid's result in words: `left` columns of `rows` are text, the others numbers.

    `terminal` is what a narrow window has room for, its first row the head.
    """

    kind: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    notes: tuple[str, ...]
    failures: tuple[str, ...]
    terminal: tuple[tuple[str, ...], ...]


def ablation_sheet(data: Mapping[str, Any]) -> Sheet:
    """Effects by condition, the baseline's own values first."""
    baseline = data["baseline"]
    seeds = len(data["seeds"])
    first = ("baseline", f"as {data['recipe']}", of(baseline["win_rate"]["n"], seeds))
    rows = [(*first, *(signed(baseline[m.key], m, sign="") for m in MEASURES), DASH)]
    terminal = [("condition", "seeds", *(m.short for m in FEW))]
    terminal.append((first[0], first[2], *(around(baseline[m.key], m, sign="") for m in FEW)))
    for row in data["conditions"]:
        done = len((row["win_rate"] or {}).get("seeds") or ())
        what = f"{row['title']}: {' '.join(row['sets'])}"
        if row["title"] == ", ".join(row["sets"]):
            what = " ".join(row["sets"])
        numbers = (signed(row[m.key], m) for m in MEASURES)
        rows.append((row["name"], what, of(done, seeds), *numbers, _boot(row["win_rate"])))
        terminal.append((row["name"], of(done, seeds), *(around(row[m.key], m) for m in FEW)))
    measures = (f"{m.title}, {m.unit}" for m in MEASURES)
    head = ("condition", "what is changed", "seeds", *measures, "Win rate, bootstrap")
    return Sheet(
        kind="ablate",
        title=f"What the details do: {data['recipe']}",
        head=head,
        rows=tuple(rows),
        left=2,
        notes=tuple(_ablation_notes(data)),
        failures=failures(data),
        terminal=tuple(terminal),
    )


def _ablation_notes(data: Mapping[str, Any]) -> list[str]:
    posts = max((c["win_rate"]["posts"] for c in data["conditions"] if c["win_rate"]), default=0)
    bounded = [c["win_rate"] for c in data["conditions"] if ends(c["win_rate"])[1] is not None]
    clear, count = sum(map(_clear, bounded)), len(bounded)
    chance = (
        f"{clear} of {count} intervals of the win rate leave out 0. They are not corrected for "
        f"their number: without any effect, about one in twenty would ({0.05 * count:.1f} here)."
    )
    alone = "One seed has no interval: it shows nothing that another would not undo."
    policy = tagless(system_name(data["policy"]))
    return [
        "Differences are condition minus baseline, paired by seed (and win rates by post), with "
        "95% t intervals over seeds: one training run is one observation, so they hold for other "
        f"seeds on these {posts:,} posts. Win rate: {policy} against the references, "
        "ties half, at the first temperature of `evaluate.temperatures`. KL, length "
        "through EOS and EOS rate: the trained policy on the same posts at the last temperature, "
        "without dropout and with both policies at that temperature, whatever a condition trains "
        "with.",
        chance if bounded else alone,
        "The bootstrap of the win rate draws seeds and posts anew, so it speaks of other posts "
        "too; with fewer than about ten seeds it is too narrow.",
        "A seed counts where both runs are complete. A setting that makes runs fail is judged by "
        "those that did not.",
    ]


def _clear(effect: Mapping[str, Any] | None) -> bool:
    """Whether the t interval leaves out 0."""
    _, low, high = ends(effect)
    return low is not None and high is not None and (low > 0 or high < 0)


def _boot(effect: Mapping[str, Any] | None) -> str:
    _, low, high = ends(effect, 100, ("boot_low", "boot_high"))
    return DASH if low is None or high is None else f"[{low:+.1f}, {high:+.1f}]"


def scale_sheet(data: Mapping[str, Any]) -> Sheet:
    """Win rates and accuracies by size, mean over seeds with intervals."""
    sizes = data["sizes"]
    policies = [p for p in SERIES if any(p in row["win_rate"] for row in sizes)]
    measured = [a for a in ACCURACIES if any(a in row["reward_model"] for row in sizes)]
    compared = [row["seed_agreement"] for row in sizes if row["seed_agreement"]]
    rows = []
    wins = [f"{SERIES[p][0]} wins, %" for p in policies]
    terminal = [("size", "seeds", *wins, *("RM accuracy, %" for _ in measured[:1]))]
    for row in sizes:
        done = of(row["complete"], row["asked"])
        failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
        rows.append(
            (
                row["size"],
                plain(row["parameters"], 0) if row["complete"] else DASH,
                plain(row["documents"], 0),
                done + failed,
                *(signed(row["win_rate"].get(p), SHARE, sign="") for p in policies),
                *(signed(row["reward_model"].get(a), SHARE, sign="") for a in measured),
                *([_agreed(row["seed_agreement"])] if compared else []),
            )
        )
        shares = [row["win_rate"].get(p) for p in policies]
        shares += [row["reward_model"].get(a) for a in measured[:1]]
        terminal.append((row["size"], done, *(around(x, SHARE, sign="") for x in shares)))
    agrees = [f"reward model {ACCURACIES[a][0]}, %" for a in measured]
    agrees += ["reward models of two seeds agree, % (by chance)"] if compared else []
    head = ("size", "parameters", "documents", "seeds", *wins, *agrees)
    notes = [
        "Mean over seeds with a 95% t interval over seeds. Wins are against the references on the "
        "judged split at the first temperature, ties half.",
        "Learning rates are set for each size; data and steps of a stage are the same at every "
        "size, so a larger model also takes more compute.",
    ]
    if "dpo" in policies:
        notes.append("DPO may see fewer comparisons than the reward model (`dpo.max_rows`).")
    if compared:
        notes.append(
            f"Two seeds agree: how often their reward models order a comparison alike, of "
            f"{compared[0]['comparisons']:,} that other writers' texts make, mean over pairs of "
            "seeds; by chance: two models as often right whose mistakes have nothing in common."
        )
    return Sheet(
        kind="scale",
        title=f"Size: {data['recipe']}",
        head=head,
        rows=tuple(rows),
        left=1,
        notes=tuple(notes),
        failures=failures(data),
        terminal=tuple(terminal),
    )


def _agreed(found: Mapping[str, Any] | None) -> str:
    return f"{100 * found['rate']:.1f} ({100 * found['chance']:.1f})" if found else DASH


def of(done: int, asked: int) -> str:
    return str(asked) if done == asked else f"{done} of {asked}"


def failures(data: Mapping[str, Any]) -> tuple[str, ...]:
    """A line for the cells of a name that failed alike or are under way; one for those waiting."""
    alike: dict[tuple[str, str], list[str]] = {}
    for cell in data["cells"]:
        status = cell["status"]
        if status in ("failed", "running", "interrupted"):
            what = f"failed: {_short(cell['error'])}" if status == "failed" else status
            alike.setdefault((cell["name"], what), []).append(str(cell["seed"]))
    lines = [
        f"{name}, seed{'s' if seeds[1:] else ''} {', '.join(seeds)}: {what}"
        for (name, what), seeds in alike.items()
    ]
    if waiting := sum(cell["status"] == "pending" for cell in data["cells"]):
        lines.append(f"{waiting} of {len(data['cells'])} cells have not run yet.")
    return tuple(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 3]}..."


def console_table(sheet: Sheet) -> Table:
    """Mean and half width of the interval; the first column wraps, numbers do not."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=sheet.title)
    head, *rows = sheet.terminal
    for column, name in enumerate(head):
        table.add_column(name, justify="right" if column else "left", no_wrap=bool(column))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown(sheet: Sheet, command: str) -> str:
    """The sheet as a Markdown page that begins with the command."""
    shown = " ".join(command.split()).replace("```", "")  # which would end the block
    lines = [f"# {tagless(sheet.title)}", "", "```sh", shown, "```", ""]
    lines += [_md(sheet.head)]
    lines += ["|" + "|".join(":--" if i < sheet.left else "--:" for i in _columns(sheet)) + "|"]
    lines += [_md(row) for row in sheet.rows]
    if sheet.failures:
        lines += ["", "Not complete:", "", *(f"- {tagless(line)}" for line in sheet.failures)]
    for note in sheet.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _columns(sheet: Sheet) -> range:
    return range(len(sheet.head))


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(tagless(cell).replace("|", "\\|") for cell in cells) + " |"


def page(data: Mapping[str, Any], sheet: Sheet, panels: Sequence[Panel]) -> str:
    """The self-contained HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("grid.html").render(
        data=data,
        kind=sheet.kind,
        title=sheet.title,
        head=sheet.head,
        rows=sheet.rows,
        left=sheet.left,
        notes=sheet.notes,
        failures=sheet.failures,
        panels=panels,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
    )


def write_ablation(where: Path, data: Mapping[str, Any]) -> Sheet:
    """Write `ablation.json`, `.md` and `.html` into `where`."""
    sheet = ablation_sheet(data)
    panels = [forest(data["conditions"], measure) for measure in MEASURES]
    write_json(where / "ablation.json", data)
    replace_bytes(where / "ablation.md", markdown(sheet, data["command"]).encode())
    replace_bytes(where / "ablation.html", page(data, sheet, panels).encode())
    return sheet


def write_scale(where: Path, data: Mapping[str, Any]) -> Sheet:
    """Write `scale.json`, `.md`, `.html`, `.svg` and `.png` into `where`."""
    sheet = scale_sheet(data)
    write_json(where / "scale.json", data)
    replace_bytes(where / "scale.md", markdown(sheet, data["command"]).encode())
    replace_bytes(where / "scale.html", page(data, sheet, [scaling(data)]).encode())
    for kind in ("svg", "png"):
        replace_bytes(where / f"scale.{kind}", scaling_picture(data, kind))
    return sheet

"""`nplus details`: the numbered details of the paper, one by one, or as a run has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nplus.details import Detail

CHANGED = "changed"


def details(
    id: Annotated[
        str | None, typer.Argument(metavar="DETAIL", help="One entry, such as D5.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run's directory: show the values it has."),
    ] = None,
) -> None:
    """List the numbered details of the paper: code, switch, default, tests, what goes wrong."""
    from nplus.details import detail, details

    entries = details() if id is None else (detail(id),)
    config = None if run is None else _config_of(run)
    if id is not None:
        typer.echo(_page(entries[0]))
        if config is not None:
            typer.echo(f"{'in this run':<12} {_state(entries[0], config)}")
        return
    for entry in entries:
        last = entry.key or "always on" if config is None else _state(entry, config)
        typer.echo(f"{entry.id:<4} {entry.title:<34} {last}")


def changed(config: dict[str, Any]) -> list[str]:
    """A line for each detail whose key has another value than its default."""
    from nplus.details import details

    states = ((entry, _state(entry, config)) for entry in details())
    return [f"{e.id:<4} {e.title:<34} {s}" for e, s in states if s.startswith(CHANGED)]


def _page(entry: Detail) -> str:
    from nplus.config.load import default_of

    number = "" if entry.paper is None else f" (the paper's {entry.paper}{'?' * entry.inferred})"
    rows = [("", f"{entry.id} {entry.title}{number}"), ("rule", entry.statement)]
    rows += [("formula", entry.formula)] if entry.formula else []
    rows += [("without it", entry.bites), ("code", entry.code)]
    if entry.key is None:
        rows.append(("always on", entry.always_on))
    else:
        rows.append(("key", f"{entry.key}, {_shown(default_of(entry.key))} by default"))
        rows.append(("switch", " ".join(f"--set {text}" for text in entry.flip)))
    rows += [("ablation", f"{name}: {' '.join(sets)}") for name, sets in entry.ablation.items()]
    rows.append(("source", entry.source))
    rows += [("test", name) for name in entry.tests]
    return "\n".join(f"{name:<12} {text}" if name else text for name, text in rows)


def _config_of(run: Path) -> dict[str, Any]:
    from nplus.runs import RunRoot

    config: dict[str, Any] = RunRoot(run).index()["config"]
    return config


def _state(entry: Detail, config: dict[str, Any]) -> str:
    """`on`, or what stands there instead of the default."""
    from nplus.config.load import default_of

    if entry.key is None:
        return "always on"
    value: Any = config
    for name in entry.key.split("."):
        if not isinstance(value, dict):
            return f"not in this run ({entry.key})"
        value = value.get(name)
    default = default_of(entry.key)
    same = value == default
    return f"{'on' if same else CHANGED:<8} {entry.key}={_shown(value)}" + (
        "" if same else f" (default {_shown(default)})"
    )


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and "\n" in value else f"{value}"

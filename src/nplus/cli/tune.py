"""`nplus tune`: measure this machine once, for settings left to `auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from nplus.config.tuning import Alternative, Tuning

DEVICES = ("auto", "cpu", "cuda")


def tune(
    show: Annotated[bool, typer.Option("--show", help="Print what is known; measure nothing.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure again.")] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda, or auto: CUDA where there is one.")
    ] = "auto",
) -> None:
    """Measure what is fastest on this machine, in about a minute, and keep it for every run.

    Threads, precision of products, attention and allocator are for settings that are `auto`
    (`--set compute=auto` sets all of these); the rest is advice.
    """
    from nplus.records import InputError

    if device not in DEVICES:
        raise InputError(f"--device {device}: must be one of {', '.join(DEVICES)}")
    if show and force:
        raise InputError("--show measures nothing and --force measures again; give one of them")

    from nplus.stages.tuning import cache
    from nplus.stages.tuning.measure import require_device

    name = require_device(device)
    machine = cache.this_machine(name)
    found, missing = cache.read(machine)
    if show and found is None:
        raise InputError(missing)
    if found is not None and not force:
        _print(found, as_json)
        if not show:
            typer.echo("measured already; --force measures again", err=True)
        return
    if cache.path_of(machine).exists() and found is None:
        typer.echo(f"nplus: {missing}", err=True)
    cache.require_writable()
    found = _measured(name)
    path = cache.write(found)
    _print(found, as_json)
    typer.echo(f"kept in {path}", err=True)


def _measured(device: str) -> Tuning:
    """Measure, with what is timed shown on a terminal."""
    from rich.console import Console

    from nplus.stages.tuning.measure import measure

    console = Console(stderr=True)
    if not console.is_terminal:
        return measure(device)
    with console.status("measuring") as status:
        return measure(device, on_work=status.update)


def _print(tuning: Tuning, as_json: bool) -> None:
    """What was measured, and what it comes to."""
    if as_json:
        typer.echo(tuning.model_dump_json(indent=1))
        return
    from rich.console import Console

    console = Console()
    machine = tuning.machine
    console.print(
        f"{machine.cpu}, {machine.capability}, {machine.cores} cores, torch {machine.torch}, "
        f"{machine.device}: {tuning.made[:10]}, {tuning.seconds:.0f} s",
        highlight=False,
    )
    console.print(_measurements(tuning))
    if tuning.errors:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in tuning.errors.items())
        console.print(f"relative error of products against float64: {errors}", highlight=False)
    console.print(_choices(tuning))
    console.print("`--set compute=auto` takes all but the advice; a key by itself, KEY=auto.")


def _measurements(tuning: Tuning) -> Table:
    from rich.table import Table

    table = Table("setting", "work", "median, and times the first", title="measured, in turns")
    order, before = [row.key for row in tuning.measurements], ""
    for row in sorted(tuning.measurements, key=lambda row: order.index(row.key)):
        ways = ", ".join(_shown(way, n == 0) for n, way in enumerate(row.alternatives))
        table.add_row(row.key if row.key != before else "", row.work, ways)
        before = row.key
    return table


def _shown(way: Alternative, first: bool) -> str:
    """A way's name and time, and its ratio to the first."""
    text = f"{way.name} {1e3 * way.seconds:.1f} ms"
    return text if first else f"{text} x{way.ratio:.2f}"


def _choices(tuning: Tuning) -> Table:
    from rich.table import Table

    table = Table("setting", "chosen", "default", "why", title="chosen")
    for choice in tuning.choices:
        key = f"{choice.key} (advice)" if choice.advice else choice.key
        why = f"{choice.under}: {choice.why}" if choice.under else choice.why
        values = (str(value).lower() for value in (choice.value, choice.default))
        table.add_row(key, *values, why)
    return table

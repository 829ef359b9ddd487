"""The app: its commands, and what a user sees of an error."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nplus import __version__
from nplus.cli import check, data, details, doctor, evaluate, grid, online, run, tune
from nplus.records import InputError, StopError, StorageError

# Of click, or of the copy of click that typer carries.
_UsageError: Any = typer.BadParameter.__mro__[1]
LONGEST = 4_000
"""Characters of a message."""


class _Group(TyperGroup):
    """Wrong input ends in one message of one line and exit code 2; Ctrl-C in one and 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            return super().parse_args(ctx, args)  # prints the help
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _misused(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            raise _misused(error) from None
        except KeyboardInterrupt as stopped:
            typer.echo(
                "nplus: interrupted; the same command goes on from the last checkpoint", err=True
            )
            raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None
        except (StopError, StorageError) as error:
            typer.echo(f"nplus: {error}", err=True)
            raise typer.Exit(1) from None
        except ValueError as error:
            message = _explained(error)
            if message is None:
                raise
            typer.echo(f"nplus: {one_line(message)}", err=True)
            raise typer.Exit(2) from None


def _misused(error: Any) -> typer.Exit:
    """Exit code 2, after a message for an argument that the command does not take."""
    words = error.ctx.command_path.split()[1:] if error.ctx is not None else []
    command = " ".join(["nplus", *words])  # however it was started
    message = one_line(error.format_message()).rstrip(".")
    typer.echo(f"nplus: {message}; `{command} --help` tells more", err=True)
    return typer.Exit(2)


def one_line(text: str) -> str:
    """`text` as a terminal shows it in one line: whatever a file or a library has put into it, it
    breaks no line and moves no cursor."""
    words = " ".join(text.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _explained(error: ValueError) -> str | None:
    """What to tell the user, or None where the fault is not the input's."""
    if isinstance(error, InputError):
        return str(error)
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        from nplus.config.load import explain

        return "; ".join(explain(error))
    return None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nplus {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """RLHF from SFT through a reward model to PPO, with a report on what it did.

    Begin with `nplus run toy`.
    """


app.command("run")(run.run)
app.command("check")(check.check)
app.add_typer(data.app, name="data")
app.command("details")(details.details)
app.command("doctor")(doctor.doctor)
app.command("recipes")(check.recipes)
app.command("iterate")(online.iterate)
app.command("ledger")(online.ledger)
app.command("report")(run.report)
app.command("evaluate")(evaluate.evaluate)
app.command("ablate")(grid.ablate)
app.command("scale")(grid.scale)
app.command("tune")(tune.tune)

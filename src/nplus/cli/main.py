"""The app: its commands, and what a user sees of an error."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nplus import __version__
from nplus.cli import check, details, doctor, evaluate, grid, run, tune
from nplus.records import InputError


class _Group(TyperGroup):
    """Wrong input ends in one message and exit code 2; Ctrl-C in one message and 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(
                "nplus: interrupted; the same command goes on from the last checkpoint", err=True
            )
            raise typer.Exit(130) from None
        except ValueError as error:
            message = _explained(error)
            if message is None:
                raise
            typer.echo(f"nplus: {message}", err=True)
            raise typer.Exit(2) from None


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
app.command("details")(details.details)
app.command("doctor")(doctor.doctor)
app.command("recipes")(check.recipes)
app.command("report")(run.report)
app.command("evaluate")(evaluate.evaluate)
app.command("ablate")(grid.ablate)
app.command("scale")(grid.scale)
app.command("tune")(tune.tune)

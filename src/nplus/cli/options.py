"""The options that several commands share, and the config they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nplus.config import RunConfig

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A name that `nplus recipes` lists.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Change one setting, as in ppo.kl_coef=0.1."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="A YAML file of settings.")
]
RunDir = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run's directory; runs/RECIPE unless given."),
]
Processes = Annotated[
    int, typer.Option("--processes", metavar="N", min=1, help="Share the work among N processes.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Names all randomness of training and sampling.")
]


def resolve(
    name: str, config_file: Path | None, sets: list[str] | None, seed: int | None
) -> RunConfig:
    """The recipe's config after file, `--set` and `--seed`, in this order."""
    from nplus.config.load import load_config
    from nplus.recipes import recipe

    changes = list(sets or [])
    if seed is not None:
        changes.append(f"seed={seed}")
    return load_config(recipe(name), config_file=config_file, sets=changes)

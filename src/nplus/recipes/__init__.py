"""Recipes: Python functions that return a complete config, named `family` or `family:member`."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from nplus.config import RunConfig
from nplus.recipes.algorithms import CELLS, algorithms
from nplus.recipes.chat import chat, chat_dpo
from nplus.recipes.online import ONLINE_RECIPES, online, real_online
from nplus.recipes.real import real
from nplus.recipes.tldr import TLDR_RECIPES
from nplus.recipes.toy import dpo, overoptimise, tiny, toy, toy_sized
from nplus.records import InputError

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "toy": toy,
    "toy:dpo": dpo,
    "toy:online": online,
    "toy:algorithms": algorithms,
    **{f"toy:{make.__name__}": make for make in CELLS.values()},
    "toy:overoptimise": overoptimise,
    "toy:tiny": tiny,
    "real": real,
    "real:online": real_online,
    "chat": chat,
    "chat:dpo": chat_dpo,
    **ONLINE_RECIPES,
    **TLDR_RECIPES,
}

SIZED: dict[str, Callable[[str], RunConfig]] = {"toy": toy_sized}
"""Families of sizes: name to a function from a model size to its config."""


def recipe(name: str) -> RunConfig:
    """The config of a recipe; `InputError` names the nearest one and lists all."""
    if name in RECIPES:
        return RECIPES[name]()
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown recipe {name!r}; {hint}known: {', '.join(RECIPES)}")


def sized(family: str, size: str) -> RunConfig:
    """The config of one size of a family; `InputError` for an unknown family or size."""
    if family not in SIZED:
        raise InputError(f"unknown family {family!r}; known: {', '.join(SIZED)}")
    return SIZED[family](size)


def summary(name: str) -> str:
    """A recipe in one line."""
    return (RECIPES[name].__doc__ or "").partition("\n")[0].removesuffix(".")

"""Rollouts shared out among processes, by prompt, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from nplus.batches import GroupRollout, ValuedRollout
from nplus.records import Demonstration
from nplus.rollout import joined
from nplus.stages.context import Context
from nplus.stages.drawing import shared_out
from nplus.training.update import Beside

Rolled = TypeVar("Rolled", ValuedRollout, GroupRollout)
OnPart = Callable[[str], None]


class Gather(Protocol[Rolled]):  # type: ignore[misc]
    """Responses to some posts at an update, `each` rows a post side by side."""

    def __call__(self, posts: list[Demonstration], step: int, on_part: OnPart = ...) -> Rolled: ...


def in_two(
    gather: Gather[Rolled],
    posts: list[Demonstration],
    step: int,
    beside: Beside[Any] | None,
    on_part: OnPart,
    *,
    pad_id: int,
    each: int = 1,
) -> Rolled:
    """What `gather` gives, of two processes whose prompts are equally long on the whole; the job in
    the other is called `gather`."""
    if beside is None or len(posts) < 2:
        return gather(posts, step, on_part)
    own, others = shared_out(posts, 2)
    parts = beside.partner.beside(
        lambda: gather([posts[i] for i in own], step, on_part),
        "gather",
        [posts[i] for i in others],
        step,
    )
    return joined(parts, rows(own + others, each), pad_id=pad_id)


def over_ranks(
    gather: Gather[Rolled],
    posts: list[Demonstration],
    step: int,
    beside: Beside[Any] | None,
    on_part: OnPart,
    ctx: Context,
    *,
    each: int = 1,
) -> Rolled:
    """The same of all processes, in each: they share the prompts out and tell each other."""
    ranks, pad_id = ctx.topology, ctx.codec.pad_id
    if ranks.world == 1:
        return in_two(gather, posts, step, beside, on_part, pad_id=pad_id, each=each)
    places = shared_out(posts, ranks.world)
    own = [posts[i] for i in places[ranks.rank]]
    found = None
    if own:
        found = in_two(gather, own, step, beside, on_part, pad_id=pad_id, each=each).to("cpu")
    parts = [part for part in ranks.collectives.gather(found) if part is not None]
    order = rows([i for of_one in places for i in of_one], each)
    return joined(parts, order, pad_id=pad_id).to(ctx.device)


def rows(posts: Sequence[int], each: int) -> list[int]:
    """Where the rows of these posts stand, `each` of a post side by side."""
    return [post * each + g for post in posts for g in range(each)]

"""What the steps of a round share: the prompts, who the policies are, and who wrote and scored."""

from __future__ import annotations

from collections.abc import Sequence

from nplus.config import RunConfig
from nplus.config.online import OnlineConfig, Step
from nplus.records import Demonstration, InputError, read_records
from nplus.runs import StageDir, key_of
from nplus.seeding import epoch_order
from nplus.stages.context import Context
from nplus.stages.scoring import scoring_key


def settings(ctx: Context) -> OnlineConfig:
    """The loop's settings, in a run that has it."""
    if ctx.config.online is None:
        raise ValueError("the online loop needs `online`")
    return ctx.config.online


def policy_stage(round: int) -> str:
    """The stage whose `model/` is the policy after `round` rounds."""
    return Step(round, "train").name if round else "sft"


def policy_name(round: int) -> str:
    """How the ledger and the tables call it."""
    return f"round{round}" if round else "sft"


def begins_at(cfg: OnlineConfig, round: int) -> int:
    """The round whose policy this one's training begins with; 0 is SFT's."""
    return 0 if cfg.init == "sft" else round - 1


def refers_to(cfg: OnlineConfig, round: int) -> int:
    """The round whose policy is the loss's reference; 0 is SFT's.

    The published scripts moved it every round, while the paper and its authors keep it at SFT
    (sections 3.1 and 4.1).
    """
    return 0 if cfg.reference == "sft" else round - 1


def rounds_used(cfg: OnlineConfig, round: int) -> range:
    """The rounds whose pairs this one trains on."""
    return range(round, round + 1) if cfg.history == "fresh" else range(1, round + 1)


def prompts_of(ctx: Context, round: int) -> list[Demonstration]:
    """A round's prompts, of `online.prompts_data` or else of the training posts: fresh ones while a
    whole round of them is left, then reshuffled.

    Raises InputError where a round asks for more than there are.
    """
    cfg = settings(ctx)
    if cfg.prompts_data is None:
        posts, what = ctx.data.demonstrations("train"), "training posts"
    else:
        posts = read_records(ctx.dirs["prompts"].prompts, Demonstration)
        what = f"different prompts in {cfg.prompts_data}"
    if cfg.prompts > len(posts):
        raise InputError(
            f"online.prompts={cfg.prompts}: there are {len(posts)} {what}; set "
            f"online.prompts={len(posts)} or fewer"
        )
    again, place = divmod(round - 1, len(posts) // cfg.prompts)
    order = epoch_order(ctx.seed, "online prompts", again, len(posts))
    return [posts[i] for i in order[place * cfg.prompts :][: cfg.prompts]]


def cut(items: Sequence[Demonstration], size: int) -> list[list[Demonstration]]:
    """Pieces of `size` posts, those of like length together."""
    by_length = sorted(items, key=lambda post: (len(post.query), post.id))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def weights_hash(where: StageDir, part: str = "model") -> str:
    """A hash of the weights that a finished stage left: the same weights, the same hash."""
    return key_of(_written(where, part, (".safetensors", ".bin")))[:16]


def scorer_hash(where: StageDir, config: RunConfig, part: str = "model") -> str:
    """A hash of what decides a score: the weights that a finished stage left and how they are read,
    the shift that some models keep in config.json, and the verifiable rewards beside them."""
    files = _written(where, part, (".safetensors", ".bin")), _written(where, part, ("config.json",))
    read = config.reward.read_at, config.model.positions
    scoring = None if config.scoring.plain else scoring_key(config.scoring)
    return key_of(files, read, scoring)[:16]


def _written(where: StageDir, part: str, endings: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and hash of each file of a finished stage that lies in `part` and ends so."""
    manifest = where.manifest()
    files = () if manifest is None else manifest.outputs
    found = [
        (one["path"], one["sha256"])
        for one in files
        if one["path"].startswith(f"{part}/") and one["path"].endswith(endings)
    ]
    if not found:
        raise InputError(
            f"{where.path}: its manifest names no {' or '.join(endings)} in {part}/; remove the "
            "folder and run again"
        )
    return sorted(found)

"""A round's responses: n to each prompt, from policies and temperatures side by side."""

from __future__ import annotations

from typing import Any

from nplus.config import SamplingConfig
from nplus.config.online import Source
from nplus.data.preference import require_match_room
from nplus.records import Demonstration
from nplus.runs import StageDir
from nplus.runs.pieces import Pieces
from nplus.seeding import name_of
from nplus.stages.context import Context, Ticker
from nplus.stages.drawing import draw_several
from nplus.stages.online.common import (
    cut,
    policy_name,
    policy_stage,
    prompts_of,
    settings,
    weights_hash,
)


def run(where: StageDir, ctx: Context, round: int) -> dict[str, Any]:
    """Writes `responses.jsonl`, a line a prompt, a piece of prompts at a time."""
    cfg = settings(ctx)
    posts = prompts_of(ctx, round)
    pieces = cut(posts, cfg.piece)
    file = Pieces(where.responses, [[post.id for post in piece] for piece in pieces])
    done = ctx.topology.collectives.broadcast(file.begin() if ctx.topology.leads else None)
    drawer = _Drawer(ctx, round)
    if cfg.pairing == "knockout":  # told now, not after hours of drawing
        queries = {post.id: post.query for post in posts}
        require_match_room(ctx.codec, queries, cfg.response_length, drawer.positions)
    total = sum(map(len, pieces[done:])) * cfg.samples
    with ctx.progress(where.path.name[:12], total, "response") as ticker:
        for piece in pieces[done:]:
            rows = drawer.rows(piece, ticker)
            if ctx.topology.leads:
                file.add(rows)
    return {"prompts": sum(map(len, pieces)), "samples": cfg.samples}


class _Drawer:
    """The policies of a round, loaded once."""

    def __init__(self, ctx: Context, round: int) -> None:
        self.ctx, self.round = ctx, round
        self.sources = settings(ctx).sources
        makers = {source: source.after(round) for source in self.sources}
        stages = {after: policy_stage(after) for after in makers.values()}
        self.models = {after: ctx.policy(stage).eval() for after, stage in stages.items()}
        self.hashes = {after: weights_hash(ctx.dirs[stage]) for after, stage in stages.items()}
        self.makers = makers

    @property
    def positions(self) -> int | None:
        """What the models take; the pairwise model is of the same kind."""
        model = next(iter(self.models.values()))
        return getattr(model.config, "max_position_embeddings", None)

    def rows(self, piece: list[Demonstration], ticker: Ticker) -> list[dict[str, Any]]:
        """Every source's responses to some prompts: the lists have one entry a response."""
        rows: list[dict[str, Any]] = [{"id": post.id, "query": post.query} for post in piece]
        keys = ("policies", "policy_hashes", "temperatures", "seeds", "sources")
        for row in rows:
            row |= {key: [] for key in (*keys, "responses", "tokens", "ended")}
        for number, source in enumerate(self.sources):
            self._draw(number, source, piece, rows, ticker)
        return rows

    def _draw(
        self,
        number: int,
        source: Source,
        piece: list[Demonstration],
        rows: list[dict[str, Any]],
        ticker: Ticker,
    ) -> None:
        ctx, cfg, after = self.ctx, settings(self.ctx), self.makers[source]
        samples = range(cfg.samples // len(self.sources))
        name = f"round {self.round} {cfg.draw[number]}"
        drawn = draw_several(
            self.models[after],
            piece,
            SamplingConfig(temperature=source.temperature, response_length=cfg.response_length),
            ctx,
            name=name,
            size=cfg.micro_batch_size,
            samples=samples,
            ticker=ticker,
        )
        for row, responses in zip(rows, drawn, strict=True):
            for sample, response in zip(samples, responses, strict=True):
                row["policies"].append(policy_name(after))
                row["policy_hashes"].append(self.hashes[after])
                row["temperatures"].append(source.temperature)
                row["seeds"].append(name_of(ctx.seed, name, row["id"], sample))
                row["sources"].append(number)
                row["responses"].append(response.text)
                row["tokens"].append(len(response.tokens))
                row["ended"].append(response.has_eos)

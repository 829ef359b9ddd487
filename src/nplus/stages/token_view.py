"""The token view: what tuning changed in near-greedy responses, position by position (H5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.config import SamplingConfig
from nplus.data.tokens import Codec
from nplus.evaluation.tokens import base_ranks, describe_ranks, kind
from nplus.models.lm import response_logits
from nplus.records import Demonstration
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn, draw, sequences

GREEDY = 0.01
CHUNK = 8
"""Responses whose logits over the whole vocabulary stand in memory at a time."""


def token_view(
    models: Mapping[str, PreTrainedModel], posts: Sequence[Demonstration], ctx: Context
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`(rows, shares)`: each response of each tuned policy token by token, and per policy how many
    tokens are unchanged, marginal and shifted beside the first of `models`, the base."""
    cfg = ctx.config.evaluate
    (base_name, base), *tuned = models.items()
    chosen = list(posts)[: cfg.token_view_rows]
    rows: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    if not chosen:
        return rows, shares
    sampling = SamplingConfig(temperature=GREEDY, response_length=cfg.response_length)
    for name, model in tuned:
        drawn = draw(
            model, chosen, sampling, ctx, name=f"evaluate {GREEDY:g}", size=cfg.micro_batch_size
        )
        ranks: list[list[int]] = []
        for start in range(0, len(chosen), CHUNK):
            part = slice(start, start + CHUNK)
            found = compare_tokens(model, base, chosen[part], drawn[part], ctx)
            ranks += [[token["rank"] for token in tokens] for tokens in found]
            rows += [
                {"policy": name, "base": base_name, "id": post.id, "query": post.query}
                | {"fields": dict(post.fields), "top": cfg.token_view_top, "tokens": tokens}
                for post, tokens in zip(chosen[part], found, strict=True)
            ]
        shares.append(
            {"policy": name, "base": base_name, **describe_ranks(ranks, cfg.token_view_top)}
        )
    return rows, shares


@torch.no_grad()
def compare_tokens(
    tuned: PreTrainedModel,
    base: PreTrainedModel,
    posts: Sequence[Demonstration],
    drawn: Sequence[Drawn],
    ctx: Context,
) -> list[list[dict[str, Any]]]:
    """Per response and position through EOS: the token's `text`, the `choice` of the tuned model,
    its `rank` for the base with the `kind` that makes it, and the base's own first choices."""
    tokens_BT, mask_BT, response_mask_BR = sequences(posts, drawn, ctx)
    width = response_mask_BR.shape[1]
    tuned_BRV, base_BRV = (
        response_logits(model, tokens_BT, mask_BT, width) for model in (tuned, base)
    )
    ranks_BR = base_ranks(tuned_BRV, base_BRV, response_mask_BR).tolist()
    choices_BR = tuned_BRV.argmax(-1).tolist()
    top = ctx.config.evaluate.token_view_top
    base_BRK = base_BRV.topk(min(top, base_BRV.shape[-1])).indices
    found = []
    for b, row in enumerate(drawn):
        texts = pieces(ctx.codec, row.tokens)
        found.append(
            [
                {
                    "text": text,
                    "eos": row.tokens[r] == ctx.codec.eos_id,
                    "choice": name_of(ctx.codec, choices_BR[b][r]),
                    "rank": ranks_BR[b][r],
                    "kind": kind(ranks_BR[b][r], top),
                    "base": [name_of(ctx.codec, token) for token in base_BRK[b, r].tolist()],
                }
                for r, text in enumerate(texts)
            ]
        )
    return found


def pieces(codec: Codec, ids: Sequence[int]) -> list[str]:
    """The text that each id adds, nothing for EOS; the bytes of a character stand where it is
    complete. Joined they are the decoded text."""
    found, shown = [], 0
    for end in range(1, len(ids) + 1):
        text = codec.decode(ids[:end])
        torn = text.endswith("\ufffd") and end < len(ids)
        found.append("" if torn else text[shown:])
        shown = shown if torn else len(text)
    return found


def name_of(codec: Codec, token: int) -> str:
    """One id as text, special tokens by name."""
    if token == codec.eos_id:
        return "EOS"
    return codec.decode([token]) or str(codec.tokenizer.convert_ids_to_tokens(token) or token)

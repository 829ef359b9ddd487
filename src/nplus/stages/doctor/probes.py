"""What the networks themselves say: forwards that have to agree, and modules that have to be off.

Every probe leaves weights, modes and random numbers as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.batches import Generation, Rollout
from nplus.findings import Finding, found
from nplus.models.golden import score_rows
from nplus.models.lm import response_logprobs
from nplus.models.scalar import ScalarModel
from nplus.stages.doctor.bounds import LOGPROB, SCORE

LONGEST = 96
"""Tokens of a probed row; a long one would only take longer."""
LEFT = 19
"""Columns of padding put before a row: odd, and more than a word."""
COUNT = 4
"""Rows of a probe of the reward model."""


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout and gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def sampler_gap(rollout: Rollout, precision: str) -> Finding | None:
    """Sampler's log-probs against those that PPO trains with (Detail E6)."""
    generation, mask_BR = rollout.generation, rollout.generation.response_mask_BR
    gap_N = (generation.logprobs_BR.double() - rollout.logprobs_BR.double())[mask_BR]
    if not gap_N.numel():
        return None
    rms, bound = float(gap_N.square().mean().sqrt()), LOGPROB[precision]
    if rms <= bound:
        return None
    return found(
        "sampler_differs",
        f"{rms:.3g} nats a token (root mean square of {gap_N.numel()}; the sampler's are "
        f"{float(gap_N.mean()):+.3g} on average), where {precision} explains {bound:g}",
        rms=rms,
        mean=float(gap_N.mean()),
        largest=float(gap_N.abs().max()),
        tokens=gap_N.numel(),
        bound=bound,
    )


def active_dropout(networks: Mapping[str, torch.nn.Module]) -> Finding | None:
    """Modules in training mode with p > 0, by the name of their network."""
    active: dict[str, int] = {}
    largest = 0.0
    for name, network in networks.items():
        for module in network.modules():
            rate = _rate(module) if module.training else 0.0
            if rate > 0:
                active[name] = active.get(name, 0) + 1
                largest = max(largest, rate)
    if not active:
        return None
    told = ", ".join(f"{count} in {name}" for name, count in active.items())
    return found(
        "dropout_active",
        f"{sum(active.values())} modules draw, p up to {largest:g}: {told}",
        modules=sum(active.values()),
        p=largest,
    )


def _rate(module: torch.nn.Module) -> float:
    """p of a dropout module, or of attention that reads its rate as a plain number."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return float(module.p)
    rate = getattr(module, "attention_dropout", 0.0)
    return float(rate) if isinstance(rate, float | int) else 0.0


def shifted_positions(
    policy: PreTrainedModel, tokens_T: Tensor, width: int, *, pad_id: int, precision: str
) -> Finding | None:
    """Log-probs of a row's last `width` tokens with padding on its left, and without."""
    tokens_T = tokens_T[-LONGEST:]
    width = min(width, len(tokens_T) - 1)
    if width < 1:
        return None
    padded_T = torch.cat([tokens_T.new_full((LEFT,), pad_id), tokens_T])
    found_R = []
    with evaluating(policy):
        for row_T in (tokens_T, padded_T):
            mask_T = torch.arange(len(row_T), device=row_T.device) >= len(row_T) - len(tokens_T)
            logprobs_1R, _ = response_logprobs(
                policy, row_T[None], mask_T[None], width, temperature=None
            )
            found_R.append(logprobs_1R[0].double())
    rms, bound = float((found_R[0] - found_R[1]).square().mean().sqrt()), LOGPROB[precision]
    if rms <= bound:
        return None
    return found(
        "positions_shifted",
        f"{LEFT} columns of padding on the left change the log-probs of {width} tokens by "
        f"{rms:.3g} nats (root mean square), where {precision} explains {bound:g}",
        rms=rms,
        columns=LEFT,
        tokens=width,
        bound=bound,
    )


def score_invariance(
    model: ScalarModel, rows: Sequence[Sequence[int]], *, pad_id: int, precision: str
) -> Finding | None:
    """Scores of `rows` alone, in a right-padded batch, and padded on the left as in a rollout."""
    rows = [list(row)[-LONGEST:] for row in rows if len(row) > 0]
    if not rows:
        return None
    width = max(map(len, rows))
    layouts = {
        "right-padded": [(0, width - len(row)) for row in rows],
        "left-padded": [(width - len(row) + LEFT, 0) for row in rows],
    }
    with evaluating(model):
        alone_B = torch.cat([model.scores(*_rectangle([row], [(0, 0)], 0, model)) for row in rows])
        gaps = {
            name: float(
                (model.scores(*_rectangle(rows, pads, pad_id, model)) - alone_B).abs().max()
            )
            for name, pads in layouts.items()
        }
    scale = score_rows(model.network, float(model.shift), rows).scale
    worst = max(gaps, key=lambda name: gaps[name] if gaps[name] == gaps[name] else float("inf"))
    bound = SCORE[precision] * scale + 1e-6
    if gaps[worst] <= bound:
        return None
    return found(
        "score_depends_on_batch",
        f"{len(rows)} texts, {worst} in a batch, score up to {gaps[worst]:.3g} away from alone, "
        f"where {precision} explains {bound:.2g}",
        largest=gaps[worst],
        rows=len(rows),
        bound=bound,
    )


def _rectangle(
    rows: Sequence[Sequence[int]], pads: Sequence[tuple[int, int]], pad_id: int, model: ScalarModel
) -> tuple[Tensor, Tensor]:
    tokens = [
        [pad_id] * left + list(row) + [pad_id] * right
        for row, (left, right) in zip(rows, pads, strict=True)
    ]
    mask = [
        [False] * left + [True] * len(row) + [False] * right
        for row, (left, right) in zip(rows, pads, strict=True)
    ]
    return torch.tensor(tokens, device=model.device), torch.tensor(mask, device=model.device)


def sampled_rows(generation: Generation, count: int = COUNT) -> list[list[int]]:
    """Queries with their responses of a rollout as plain rows, the shortest and longest among
    them."""
    tokens_BT, mask_BT = generation.sequences()
    order = mask_BT.sum(1).argsort(stable=True).tolist()
    picked = sorted({order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)})
    return [tokens_BT[i][mask_BT[i]].tolist() for i in picked]

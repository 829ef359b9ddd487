"""Golden scores: what a scalar model gives a few fixed rows, stored beside it when it is saved.

A reward model whose head was lost on the way (left out by a conversion, drawn anew by a loader)
still gives scores, and everything after is noise. So `ScalarModel.load` scores the rows again and
refuses a directory that does not come to the stored scores. The file says what plain transformers
gives too: `logits` are what `AutoModelForSequenceClassification` returns for a row alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.models.lm import model_inputs
from nplus.records import InputError

FILE = "golden_scores.json"
TEXTS = (
    "A reward model is read at the last token.",
    "My neighbour sold my bike.",
    "POST: I lent my sister 200 dollars, she says it was a gift.\n\nTL;DR: Sister keeps it.",
    "No.",
)
"""Of no data set, so that a published model tells nothing about what it was trained on."""
MOST_TOKENS = 48
BOUNDS = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference, in the unit of `Golden.scale`: the order of sums changes float32 by some
1e-6, and a last hidden state rounded to bfloat16 in every layer by about a hundredth."""


class GoldenScoreError(InputError):
    """A scalar model does not score its golden rows as when it was saved."""

    def __init__(self, path: Path, largest: float, bound: float) -> None:
        self.largest, self.bound = largest, bound
        super().__init__(
            f"{path}: the scores of its golden rows are off by up to {largest:.3g}, where rounding "
            f"explains {bound:.3g}: head or trunk are not those that were saved (weights replaced, "
            "drawn anew or lost in a conversion). Train the reward stage again or restore the "
            f"directory; if the weights were changed on purpose, delete {FILE} there"
        )


@dataclass(frozen=True, slots=True)
class Golden:
    """What a model gives the rows. `scale` is the size of a score of this head on such states:
    |weights| * rms(hidden), or the largest raw score where that is larger."""

    scores: list[float]
    scale: float
    dtype: str

    def bound(self, other: Golden) -> float:
        """The largest difference to `other` that rounding explains."""
        return max(BOUNDS.get(g.dtype, 5e-2) for g in (self, other)) * self.scale + 1e-6


def golden_rows(vocab: int, tokenizer: Any | None, longest: int = MOST_TOKENS) -> list[list[int]]:
    """Token ids of `TEXTS`, EOS last; without a tokenizer as many rows of fixed ids."""
    if tokenizer is None:
        return [[(5 * at + 3 * row + 2) % vocab for at in range(4 + 3 * row)] for row in range(4)]
    texts = tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    ended = [[*ids[: longest - 1], *([] if eos is None else [eos])] for ids in texts]
    return [[int(token) % vocab for token in ids] for ids in ended]


def score_rows(network: PreTrainedModel, shift: float, rows: list[list[int]]) -> Golden:
    """The scores of `rows`, read at their last token, as exactly as the network's type allows."""
    lengths_B = torch.tensor([len(row) for row in rows])
    width = int(lengths_B.max())
    tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask_BT = torch.arange(width) < lengths_B[:, None]
    with _exactly(network), torch.no_grad():
        inputs = model_inputs(network, tokens_BT.to(network.device), mask_BT.to(network.device))
        hidden_BTH = network.base_model(**inputs).last_hidden_state
        hidden_BH = hidden_BTH[torch.arange(len(rows)), lengths_B - 1].double()
        weight_H = network.score.weight[0].double()
        raw_B = hidden_BH @ weight_H
    scale = max(float(weight_H.norm() * hidden_BH.square().mean().sqrt()), float(raw_B.abs().max()))
    scores = [float(raw) - shift for raw in raw_B]
    return Golden(scores, scale, str(network.dtype).removeprefix("torch."))


@contextmanager
def _exactly(network: PreTrainedModel) -> Iterator[None]:
    """Without dropout, autocast and reduced precision of products."""
    training, precision = network.training, torch.get_float32_matmul_precision()
    network.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(network.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        network.train(training)


def write_golden(
    folder: Path, network: PreTrainedModel, shift: float, stored_shift: float, tokenizer: Any | None
) -> None:
    """Write `golden_scores.json`; `stored_shift` is what config.json holds of it."""
    longest = min(MOST_TOKENS, getattr(network.config, "max_position_embeddings", MOST_TOKENS))
    rows = golden_rows(network.config.vocab_size, tokenizer, longest)
    golden = score_rows(network, shift, rows)
    content = {
        "rows": rows,
        "scores": golden.scores,
        "logits": [score + stored_shift for score in golden.scores],
        "scale": golden.scale,
        "dtype": golden.dtype,
    }
    (folder / FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def check_golden(path: Path, network: PreTrainedModel, shift: float) -> dict[str, float] | None:
    """`largest` difference to the stored scores and its `bound`; None where nothing is stored.

    Raises GoldenScoreError beyond the bound, and InputError for a file that cannot be read.
    """
    file = path / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [[int(token) for token in row] for row in content["rows"]]
        stored = Golden(
            [float(x) for x in content["scores"]], float(content["scale"]), str(content["dtype"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not golden scores ({error}); delete it or restore it") from error
    if not rows or len(rows) != len(stored.scores) or not all(rows):
        raise InputError(f"{file}: not golden scores (rows and scores differ); restore it")
    if max(map(max, rows)) >= network.config.vocab_size:
        raise InputError(
            f"{file}: holds token ids beyond the {network.config.vocab_size} of this model; it "
            "belongs to another one"
        )
    found = score_rows(network, shift, rows)
    largest = max(abs(a - b) for a, b in zip(found.scores, stored.scores, strict=True))
    bound = stored.bound(found)
    if not largest <= bound:
        raise GoldenScoreError(path, largest, bound)
    return {"largest": largest, "bound": bound}

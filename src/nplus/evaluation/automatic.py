"""ROUGE against references (Detail C3)."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score import rouge_scorer

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = False
) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L over all rows at once; the paper does not stem.

    The paper averages batches of 4 per rank (Detail C3); over equal batches that is the same.
    """
    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=use_stemmer)
    totals = dict.fromkeys(KINDS, 0.0)
    for prediction, reference in zip(predictions, references, strict=True):
        found = scorer.score(reference, prediction)
        for kind in KINDS:
            totals[kind] += found[kind].fmeasure
    return {kind: total / max(1, len(predictions)) for kind, total in totals.items()}

"""Scorers: the embedded world's gold scorer and a reward model of the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nplus.data.collate import WIDTH_MULTIPLE, shared_batch, text_batch
from nplus.data.tokens import Codec
from nplus.data.world.facts import FactSheet
from nplus.data.world.gold import GoldScore, GoldScorer
from nplus.metrics import Mean
from nplus.models.scalar import ScalarModel
from nplus.records import Comparison, Demonstration, InputError, Sample, parse_lines

SHARED_ROW = 512
"""Tokens of a row of responses that share a query, unless the query alone has half of them."""


def read_facts(path: Path) -> dict[str, FactSheet]:
    """The world's hidden fact sheets by prompt id."""
    found = {}
    for number, row in parse_lines(path):
        try:
            found[str(row["id"])] = FactSheet.from_json(row["sheet"])
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: not a fact sheet of the world; the file is damaged: "
                f"remove {path.parent.parent} and run again"
            ) from error
    return found


class Gold:
    """The world's gold scorer; looks a sample's facts up by its prompt's id."""

    def __init__(self, facts: Path) -> None:
        self.sheets = read_facts(facts)
        self._scorer = GoldScorer()

    def judge(self, id: str, text: str) -> GoldScore:
        return self._scorer.score(self.sheets[id], text)

    def mean(self, posts: Sequence[Demonstration], texts: Sequence[str]) -> Mean:
        """Of one response to each post."""
        judged = [self.judge(p.id, text).total for p, text in zip(posts, texts, strict=True)]
        return Mean(sum(judged), len(judged))

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [self.judge(sample.id, sample.response).total for sample in samples]


class RewardScorer:
    """A Bradley-Terry reward model read at the EOS of query + response (Detail D4).

    `shared`: where queries have several responses, those share one reading of their query.
    """

    def __init__(
        self, model: ScalarModel, codec: Codec, *, size: int = 64, shared: bool = False
    ) -> None:
        self.model, self.codec, self.size, self.shared = model, codec, size, shared

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, `size` of them at once."""
        queries = {sample.query for sample in samples}
        shared = self.shared and len(samples) >= 2 * len(queries)
        batch_scores = self._together if shared else self._apart
        order = sorted(range(len(samples)), key=lambda i: _place(samples[i], shared))
        scores = [0.0] * len(samples)
        for start in range(0, len(order), self.size):
            picked = order[start : start + self.size]
            found = batch_scores([(samples[i].query, samples[i].response) for i in picked])
            for i, value in zip(picked, found.tolist(), strict=True):
                scores[i] = value
        return scores

    def _apart(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        tokens_BT, mask_BT = text_batch(self.codec, texts, multiple=WIDTH_MULTIPLE)
        return self.model.scores(tokens_BT.to(self.model.device), mask_BT.to(self.model.device))

    def _together(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        rows = self.codec.encode_pairs([query for query, _ in texts], [text for _, text in texts])
        batch = shared_batch(
            rows, pad_id=self.codec.pad_id, multiple=WIDTH_MULTIPLE, longest=SHARED_ROW
        )
        return self.model.shared_scores(batch.to(self.model.device))

    def pairs(self, comparisons: Sequence[Comparison]) -> list[tuple[float, float]]:
        """Scores of the two responses of each comparison, in the comparison's order."""
        samples = [Sample(c.id, c.query, text) for c in comparisons for text in c.responses]
        scores = self.score(samples)
        return list(zip(scores[::2], scores[1::2], strict=True))

    def margins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Score of the chosen response minus that of the other."""
        return margins(comparisons, self.pairs(comparisons))


def _place(sample: Sample, shared: bool) -> tuple[int, str]:
    """Texts of like length are scored together, and those that share a query one after another."""
    query, response = sample.query, sample.response
    return (len(query), query) if shared else (len(query) + len(response), "")


def margins(comparisons: Sequence[Comparison], pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Of scored comparisons, the score of the chosen response minus that of the other."""
    scored = zip(comparisons, pairs, strict=True)
    return [pair[row.choice] - pair[1 - row.choice] for row, pair in scored]

"""Scorers: the embedded world's gold scorer and a reward model of the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nplus.data.collate import WIDTH_MULTIPLE, pair_rows, shared_pair_batch, text_batch
from nplus.data.tokens import Codec
from nplus.data.world.facts import FactSheet
from nplus.data.world.gold import GoldScore, GoldScorer
from nplus.metrics import Mean
from nplus.models.scalar import ScalarModel
from nplus.records import Comparison, Demonstration, InputError, Sample, parse_lines


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

    `shared`: responses that are compared share one reading of their query.
    """

    def __init__(
        self, model: ScalarModel, codec: Codec, *, size: int = 64, shared: bool = False
    ) -> None:
        self.model, self.codec, self.size, self.shared = model, codec, size, shared

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        device = next(self.model.parameters()).device
        order = sorted(
            range(len(samples)), key=lambda i: len(samples[i].query) + len(samples[i].response)
        )
        scores = [0.0] * len(samples)
        for start in range(0, len(order), self.size):
            picked = order[start : start + self.size]
            texts = [(samples[i].query, samples[i].response) for i in picked]
            tokens_BT, mask_BT = text_batch(self.codec, texts, multiple=WIDTH_MULTIPLE)
            found = self.model.scores(tokens_BT.to(device), mask_BT.to(device)).tolist()
            for i, value in zip(picked, found, strict=True):
                scores[i] = value
        return scores

    @torch.no_grad()
    def pairs(self, comparisons: Sequence[Comparison]) -> list[tuple[float, float]]:
        """Scores of the two responses of each comparison, in the comparison's order."""
        if not self.shared:
            samples = [Sample(c.id, c.query, text) for c in comparisons for text in c.responses]
            scores = self.score(samples)
            return list(zip(scores[::2], scores[1::2], strict=True))
        rows = pair_rows(self.codec, comparisons)
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].query), rows[i].query))
        found = [(0.0, 0.0)] * len(rows)
        for start in range(0, len(order), self.size):
            picked = order[start : start + self.size]
            batch = shared_pair_batch(
                [rows[i] for i in picked], pad_id=self.codec.pad_id, multiple=WIDTH_MULTIPLE
            )
            better, worse = self.model.pair_scores(batch.to(self.model.device)).chunk(2)
            for i, pair in zip(
                picked, zip(better.tolist(), worse.tolist(), strict=True), strict=True
            ):
                found[i] = pair if comparisons[i].choice == 0 else pair[::-1]
        return found

    def margins(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Score of the chosen response minus that of the other."""
        return margins(comparisons, self.pairs(comparisons))


def margins(comparisons: Sequence[Comparison], pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Of scored comparisons, the score of the chosen response minus that of the other."""
    scored = zip(comparisons, pairs, strict=True)
    return [pair[row.choice] - pair[1 - row.choice] for row, pair in scored]

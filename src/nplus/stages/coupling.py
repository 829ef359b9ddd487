"""The first pass of losses that are coupled across a minibatch: AOT, BCO and KTO.

Without gradient, over the whole minibatch, shared by all processes and put together again in the
order of the micro-batches: so neither their size nor the number of processes changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import preference
from nplus.algorithms.preference import Pairs, RunningMean
from nplus.batches import CoupledPairs, PairBatch, ReferredPairs
from nplus.config import DPOConfig
from nplus.data.collate import PairRow
from nplus.distributed.topology import Topology

Forward = Callable[[PreTrainedModel, PairBatch], Tensor]
"""[2N] summed log-probs of a model, the chosen responses' first."""


@dataclass(slots=True)
class Coupling:
    """What BCO, KTO and AOT read of a minibatch (`trainer.FirstPass`)."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    cfg: DPOConfig
    topology: Topology
    forward: Forward
    micro_batches: Callable[[list[PairRow], int], list[Pairs]]
    device: torch.device
    mean: RunningMean = field(default_factory=RunningMean)
    """BCO's level, which lasts."""
    pending: tuple[float, float] = (0.0, 0.0)
    """Sum and count of the rewards of the step at hand."""

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"level": self.mean} if self.cfg.loss_type == "bco_pair" else {}

    def after(self) -> None:
        self.mean.observe(*self.pending)
        self.pending = (0.0, 0.0)

    def before(self, rows: Sequence[PairRow], micros: list[Pairs]) -> list[Pairs]:
        if preference.kind_of(self.cfg).statistics == "mismatched":
            level = self._mismatched_level(rows)
            return [_coupled(micro, level, None) for micro in micros]
        found = self._log_probs(micros)
        policy_2N, reference_2N = (_stacked([one[i] for one in found]) for i in (0, 1))
        level = self._running_level(policy_2N, reference_2N)
        facings = preference.facings(policy_2N, reference_2N, self.cfg)
        start, told = 0, []
        for micro, (_, ref_2N) in zip(micros, found, strict=True):
            stop = start + len(micro)
            part = None if facings is None else (facings[0][start:stop], facings[1][start:stop])
            known = ReferredPairs(preference.plain(micro), *ref_2N.chunk(2))
            told.append(_coupled(known, level, part))
            start = stop
        return told

    def _running_level(self, policy_2N: Tensor, reference_2N: Tensor) -> float:
        """BCO: the mean of all rewards, those of this step included; 0 for other losses."""
        if self.cfg.loss_type != "bco_pair":
            return 0.0
        rewards_2N = self.cfg.beta * (policy_2N - reference_2N)
        self.pending = (float(rewards_2N.sum()), float(len(rewards_2N)))
        return self.mean.with_(*self.pending)

    def _mismatched_level(self, rows: Sequence[PairRow]) -> float:
        """KTO: beta times the KL that queries with other queries' responses show, at least 0."""
        size = min(self.cfg.batch.micro_batch_size, len(rows))
        found = self._log_probs(self.micro_batches(mismatched(rows), size))
        gains_2N = _stacked([policy_2N - ref_2N for policy_2N, ref_2N in found])
        return self.cfg.beta * max(0.0, float(gains_2N.mean()))

    def _log_probs(self, micros: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]]:
        """Per micro-batch `policy_2N, reference_2N` in float64, all of them in every process."""
        share = self.topology.share([float(len(micro)) for micro in micros])
        own = {i: self._both(micros[i]) for i in share}
        found: dict[int, tuple[list[float], list[float]]] = {}
        for part in self.topology.collectives.gather(own):
            found |= part
        return [(_wide(found[i][0]), _wide(found[i][1])) for i in range(len(micros))]

    @torch.no_grad()
    def _both(self, micro: Pairs) -> tuple[list[float], list[float]]:
        pairs = preference.plain(micro).to(self.device)
        ref_2N = preference.known_ref_logprobs(micro)
        if ref_2N is None:
            ref_2N = self.forward(self.reference, pairs)
        with _evaluating(self.policy):
            policy_2N = self.forward(self.policy, pairs)
        return policy_2N.tolist(), ref_2N.tolist()


def mismatched(rows: Sequence[PairRow]) -> list[PairRow]:
    """Every query with both responses of the next pair of another query; with those of the next
    pair where all have the same query."""
    found = []
    for at, row in enumerate(rows):
        after = [*rows[at + 1 :], *rows[:at]]
        other = next((x for x in after if x.query != row.query), (after or [row])[0])
        found.append(PairRow(row.query, other.chosen, other.rejected))
    return found


def _coupled(
    micro: PairBatch | ReferredPairs | CoupledPairs,
    level: float,
    facings: tuple[Tensor, Tensor] | None,
) -> CoupledPairs:
    assert not isinstance(micro, CoupledPairs)
    level_N = torch.full((len(micro),), level, dtype=torch.float64)
    zeros_N = torch.zeros_like(level_N)
    return CoupledPairs(micro, level_N, *(facings or (zeros_N, zeros_N)))


def _stacked(parts_2N: Sequence[Tensor]) -> Tensor:
    """[2M] all chosen, then all rejected, of parts that are [2N] each."""
    chosen, rejected = zip(*(part_2N.chunk(2) for part_2N in parts_2N), strict=True)
    return torch.cat([*chosen, *rejected])


def _wide(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, which would draw."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)

"""What every stage is given: the run's config, its data, its device and where to show progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from nplus.config import RunConfig
from nplus.data.prepare import DataDir
from nplus.data.tokens import Codec, TextRules
from nplus.distributed.topology import Topology
from nplus.engines.kv import KVEngine
from nplus.evaluation.verifiable import Term
from nplus.models.critic import SharedCritic
from nplus.models.files import load_causal_lm, save_causal_lm
from nplus.models.lm import set_dropout, set_positions
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration, InputError
from nplus.rollout import ScoreFn
from nplus.runs import StageDir, Stop
from nplus.stages.doctor.watch import Watch
from nplus.stages.scorers import Gold, RewardScorer
from nplus.stages.scoring import score_fn, terms_of

READ_AT = {"eos": 0, "before_eos": 1}
"""Detail D4: tokens between the last one and the one whose output is the score."""


@dataclass
class Context:
    """Shared by the stages of one run; `dirs` maps finished stages to their directories."""

    config: RunConfig
    device: torch.device
    console: Console
    dirs: dict[str, StageDir]
    topology: Topology = field(default_factory=Topology)
    stop: Stop = field(default_factory=Stop)
    watch: Watch = field(default_factory=Watch)
    """Looks at the run as it goes; by itself it does nothing."""

    def warn(self, note: str) -> None:
        """Tell the user, in the first process."""
        if self.topology.leads:
            self.console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    @cached_property
    def data(self) -> DataDir:
        return DataDir(self.dirs["data"].data)

    @cached_property
    def codec(self) -> Codec:
        """The run's tokenizer under the text rules of its configuration."""
        return self.data.codec().with_rules(TextRules.of(self.config.data, self.config.tokenizer))

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The rewards of the run beside its reward model."""
        return terms_of(self.config.scoring, self._reward_of_another)

    def _reward_of_another(self, folder: Path) -> RewardScorer:
        """The reward model in `folder`, which comes from outside the run."""
        own, other = self.codec.tokenizer, Codec.load(folder).tokenizer
        if own.get_vocab() != other.get_vocab():
            raise InputError(
                f"scoring.terms: reward_model: {folder}: has another tokenizer than the run; name "
                "a reward model with the run's"
            )
        shared = self.config.reward.layout == "shared"
        return RewardScorer(self.scalar(folder).eval(), self.codec, shared=shared)

    def score_fn(
        self, reward_model: ScalarModel, posts: Sequence[Demonstration], *, shared: bool = False
    ) -> ScoreFn:
        """What responses to `posts` are scored by in training (`scoring`); `shared`: each distinct
        prompt is read once."""
        cfg = self.config.scoring
        return score_fn(reward_model, cfg, self.terms, posts, self.codec, shared=shared)

    def gold(self) -> Gold | None:
        """The gold scorer of the embedded world; None where there are no fact sheets."""
        return None if self.data.facts_path is None else Gold(self.data.facts_path)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def base_stage(self) -> str | None:
        """The stage that made the base model; None where it comes from outside."""
        return "pretrain" if "pretrain" in self.dirs else None

    def policy(self, stage: str | None) -> PreTrainedModel:
        """The causal model that `stage` wrote, or for None the configured base model."""
        return self.causal(None if stage is None else self.dirs[stage].model)

    def causal(self, path: Path | None) -> PreTrainedModel:
        """The causal model in `path`, or for None the configured base model."""
        cfg = self.config.model
        if path is not None:
            cfg = cfg.model_copy(
                update={"model_name_or_path": str(path), "size": None, "revision": None}
            )
        return load_causal_lm(cfg).to(self.device)

    def scalar(self, path: Path, *, dropout: float = 0.0) -> ScalarModel:
        """The reward or value model in `path`, on the run's device."""
        model = ScalarModel.load(path, attn=self.config.model.attn_implementation)
        return self.as_scalar(model, dropout=dropout)

    def as_scalar(self, model: ScalarModel, *, dropout: float = 0.0) -> ScalarModel:
        """`model` on the run's device, with the settings that no checkpoint holds."""
        set_dropout(model.network, dropout)
        set_positions(model.network, self.config.model.positions)
        model.tokens_back = READ_AT[self.config.reward.read_at]
        return model.to(self.device)

    def keep(self, model: PreTrainedModel, path: Path) -> None:
        """Write a causal model with the run's tokenizer, in the first process."""
        if self.topology.leads:
            save_causal_lm(model, path, self.codec.tokenizer)

    def keep_scalar(self, model: ScalarModel | SharedCritic, path: Path) -> None:
        """Write a reward or value model, in the first process."""
        if self.topology.leads:
            model.save(path, self.codec.tokenizer)

    def engine(self, model: PreTrainedModel, version: int = 0) -> KVEngine:
        """Samples from `model`, whose weights have had `version` updates."""
        return KVEngine(model, eos_id=self.codec.eos_id, pad_id=self.codec.pad_id, version=version)

    @contextmanager
    def progress(self, stage: str, total: int, unit: str = "step") -> Iterator[Ticker]:
        """A live bar on a terminal, nothing when piped."""
        bar = Progress(
            TextColumn(f"[bold]{stage:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit + "s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        with bar:
            yield Ticker(bar, bar.add_task(stage, total=total, note=""))


@dataclass(frozen=True, slots=True)
class Ticker:
    """Advances one progress bar, with the latest figures beside it."""

    bar: Progress
    task: object

    def tick(self, by: int = 1, **figures: float) -> None:
        note = "  ".join(f"{name} {value:,.4g}" for name, value in figures.items())
        self.bar.update(self.task, advance=by, note=note)  # type: ignore[arg-type]


class Clock:
    """Wall time since it was made, lap by lap."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """What has passed since the last lap, or since the start, was `name`."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return self.last - self.began

"""Online iterative preference learning: rounds of sample, score, pair, train, validate."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from nplus.config.base import Config, unread
from nplus.config.dpo import SOFT, DPOConfig
from nplus.config.optim import BatchConfig, OptimConfig

STEPS = ("sample", "score", "pair", "train", "validate")
"""What a round is made of, in order."""
_STEP = re.compile(rf"round(\d+)_({'|'.join(STEPS)})")
_SOURCE = re.compile(r"(current|previous|sft)@(\d+(?:\.\d*)?|\.\d+)")


class Step(NamedTuple):
    """One stage of the loop."""

    round: int
    """1, 2, ...; round 0 is the SFT policy, which is validated only."""
    kind: str

    @property
    def name(self) -> str:
        return f"round{self.round}_{self.kind}"


def step_of(stage: str) -> Step | None:
    """The step that a stage's name stands for; None for a stage outside the loop."""
    found = _STEP.fullmatch(stage)
    return Step(int(found[1]), found[2]) if found else None


class Source(NamedTuple):
    """Who writes a sample: a policy, at a temperature."""

    policy: str
    """`current`: the policy that the round begins with; `previous`: the one before it; `sft`."""
    temperature: float

    def after(self, round: int) -> int:
        """The round whose training made the policy, for a sample of `round`; 0 for SFT's."""
        back = {"current": 1, "previous": 2, "sft": round}[self.policy]
        return max(0, round - back)


def source_of(text: str) -> Source:
    """`current@0.7` as a `Source`. Raises ValueError for anything else."""
    found = _SOURCE.fullmatch(text)
    if not found or float(found[2]) <= 0:
        raise ValueError(
            f"{text!r}: needs POLICY@TEMPERATURE, POLICY one of current, previous and sft, the "
            "temperature above 0, as in current@0.7"
        )
    return Source(found[1], float(found[2]))


def _sources(texts: tuple[str, ...]) -> tuple[str, ...]:
    found = [source_of(text) for text in texts]
    if len({*found}) < len(found):
        raise ValueError("a source is given twice; name each once")
    return texts


Sources = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_sources)]
Pairing = Literal[
    "best_worst",
    "best_second",
    "best_random",
    "first_two",
    "across",
    "thompson",
    "bai",
    "uncertain",
    "knockout",
]


class OnlineConfig(Config):
    """The online loop (arXiv 2405.07863, Algorithm 2); the defaults are the paper's."""

    rounds: int = Field(3, ge=1, le=999)
    prompts: int = Field(20_000, ge=1)
    """Prompts of a round, fresh ones as long as there are any."""
    prompts_data: str | None = None
    """Where they come from: a file, a folder or a hub dataset of prompts alone (`data.format` and
    `data.template` say how they read); None takes the queries of the demonstrations."""
    samples: int = Field(8, ge=2)
    """Responses to each prompt (n), shared out evenly over the sources."""
    draw: Sources = ("current@1.0", "current@0.7")
    """Who writes them: POLICY@TEMPERATURE, POLICY being `current`, `previous` or `sft`. Another
    temperature or checkpoint is the paper's stand-in for its exploring agent (section 3.2)."""
    response_length: int = Field(2048, ge=1)
    """Longest response in tokens, EOS included."""
    micro_batch_size: int = Field(128, ge=1)
    """Responses drawn, and scored, at once."""
    piece: int = Field(64, ge=1)
    """Prompts between two writes to disk: what a killed run loses at most."""
    scorer: Literal["reward", "ensemble"] = "reward"
    """The reward model, or the members of `reward_ensemble`."""
    aggregate: Literal["mean", "min"] = "mean"
    """What an ensemble's scores of a response come to: their mean, or the worst case. With one
    reward model there is nothing to choose."""
    length_penalty: float = Field(0.0, ge=0)
    """Score taken off per unit of length; 0.001 a character in the paper's length-controlled
    run."""
    length_unit: Literal["characters", "tokens"] = "characters"
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Score taken off a response that was cut off at `response_length`."""
    mask_truncated_completions: bool = False
    """Responses that were cut off take no part in a pair. They are few, but mostly the worst of
    their prompt, so that `best_worst` makes them the rejected side of many pairs; without those
    nothing holds them down, and their share may grow from round to round. A prompt with fewer than
    two others is left out."""
    pairing: Pairing = "best_worst"
    """Which two responses make a pair, by penalised score: best against worst, against the second
    best, or against another at random; the first two drawn; the best of the first source against
    the best of the second (`across`); of an ensemble, the favourites of two members (`thompson`),
    a member's favourite against the response whose advantage over it the members disagree on most
    (`bai`), or the two that they disagree on most (`uncertain`); `knockout`: the pairwise model of
    `preference` finds best and worst, match by match."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs whose penalised scores differ by less are left out; equal ones always are."""
    reference: Literal["sft", "previous"] = "sft"
    """The loss's reference policy: the SFT policy in every round, or the round's first policy."""
    init: Literal["previous", "sft"] = "previous"
    """Where a round's training begins: at the round before, or at the SFT policy."""
    history: Literal["accumulate", "fresh", "offline-mix"] = "accumulate"
    """The pairs of a round's training: those of all rounds so far, of this round alone, or of all
    rounds and the run's offline comparisons."""
    offline_pairs: int | None = Field(None, ge=1)
    """With `history=offline-mix`: at most so many of the offline comparisons, the first ones."""
    train: DPOConfig = DPOConfig(
        epochs=2,
        beta=0.1,
        optim=OptimConfig(learning_rate=5e-7, warmup_ratio=0.03, adam_epsilon=1e-8),
        batch=BatchConfig(batch_size=128, micro_batch_size=2),
    )
    """Loss and optimisation of each round."""
    valid_prompts: int | None = Field(None, ge=1)
    """Validate on the first posts of the validation split; None takes all."""
    choose: Literal["best", "last"] = "best"
    """The round whose policy is the loop's: the one that wins most against the references of the
    validation posts, by `evaluate.judge` at the first of `evaluate.temperatures`, or the last."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """Who writes, as parsed from `draw`."""
        return tuple(map(source_of, self.draw))

    def steps(self) -> tuple[Step, ...]:
        """Every step of the loop, in order; SFT's validation comes first."""
        rounds = range(1, self.rounds + 1)
        return (Step(0, "validate"), *(Step(number, kind) for number in rounds for kind in STEPS))

    @model_validator(mode="after")
    def _read(self) -> Self:
        readers = {
            "aggregate": (self.scorer == "ensemble", f"scorer={self.scorer}", "scorer=ensemble"),
            "length_unit": (self.length_penalty, "length_penalty=0", "length_penalty=0.001"),
        }
        for problem in unread(self, readers):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples % len(self.draw):
            raise ValueError(
                f"samples={self.samples} does not share out over {len(self.draw)} sources; make it "
                f"a multiple of {len(self.draw)}"
            )
        if self.pairing == "across" and len(self.draw) != 2:
            raise ValueError(
                f"pairing=across with {len(self.draw)} sources: it sets two against each other, as "
                'in draw=["current@1.0", "sft@1.0"]'
            )
        if self.pairing in ("thompson", "bai", "uncertain") and self.scorer != "ensemble":
            raise ValueError(
                f"pairing={self.pairing} with scorer={self.scorer}: it needs several opinions; set "
                "scorer=ensemble"
            )
        for key in ("length_penalty", "missing_eos_penalty", "mask_truncated_completions"):
            if self.pairing == "knockout" and (value := getattr(self, key)):
                raise ValueError(
                    f"{key}={value} with pairing=knockout: matches between all responses find the "
                    f"pair, whatever their scores; set {key}={type(value)(0)}, or another pairing"
                )
        if self.pairing == "knockout" and self.train.loss_type in SOFT:
            raise ValueError(
                f"train.loss_type={self.train.loss_type} with pairing=knockout: its targets are "
                "differences of scores, and a match knows a probability; set "
                "train.loss_type=sigmoid, or another pairing"
            )
        if self.train.max_rows is not None:
            raise ValueError(
                f"train.max_rows={self.train.max_rows}: a round trains on all its pairs; set "
                "prompts, or history=fresh"
            )
        if self.offline_pairs is not None and self.history != "offline-mix":
            raise ValueError(
                f"offline_pairs={self.offline_pairs} with history={self.history}: set "
                "history=offline-mix, or offline_pairs=null"
            )
        return self

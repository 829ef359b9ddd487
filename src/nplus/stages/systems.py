"""What is judged: a system's responses to one split, scored, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nplus.engines.api import chat_client
from nplus.evaluation.accuracy import share
from nplus.evaluation.automatic import rouge
from nplus.evaluation.comparators import Comparator, LLMJudge, ordered
from nplus.records import Demonstration, Sample, StopError
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn
from nplus.stages.scorers import Gold, RewardScorer
from nplus.stats import bootstrap_mean, mean_difference

REFERENCE = "reference"
POLICIES = ("sft", "ppo", "dpo", "reinforce", "online_dpo", "online")
"""Stages that make a policy; the first is what the others are tuned from."""


@dataclass(frozen=True, slots=True)
class System:
    """One policy's responses to one split at one temperature, scored."""

    policy: str
    temperature: float | None
    split: str
    posts: list[Demonstration]
    texts: list[str]
    tokens: list[int]
    ended: list[bool]
    proxy: list[float]
    score: list[float]
    covered: list[tuple[str, ...]]
    wrong: list[tuple[tuple[str, str], ...]]
    """Facts stated wrongly, as (slot, value); empty lists without a gold scorer."""
    called: str = ""
    """What its stage trained it by, where the stage's name does not tell: `rloo`."""
    kl: list[float] = field(default_factory=list)
    """Nats from SFT; empty for SFT itself, for texts from elsewhere and near-greedy responses."""

    @property
    def label(self) -> str:
        """`ppo@0.7`, `rloo@0.7`; without a temperature just the name."""
        name = self.called or self.policy
        return name if self.temperature is None else f"{name}@{self.temperature:g}"

    def part(self, name: str, index: Sequence[int]) -> System:
        """The same of some of the posts, under a name of their own."""
        lists = (f.name for f in fields(self) if isinstance(getattr(self, f.name), list))
        rows = ((name, getattr(self, name)) for name in lists)
        picked = {name: [row[i] for i in index] for name, row in rows if row}
        return replace(self, split=name, **picked)


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges: the reward model always, gold where there are fact sheets, and where a comparator
    is given it decides which of two responses is better."""

    reward: RewardScorer
    gold: Gold | None
    comparator: Comparator | None = None
    called: Mapping[str, str] = field(default_factory=dict)
    """Names of policies whose stage's does not tell how they were trained."""

    def system(
        self,
        policy: str,
        temperature: float | None,
        split: str,
        posts: list[Demonstration],
        drawn: Sequence[Drawn],
        kl: Sequence[float] = (),
    ) -> System:
        """`drawn` are the responses to `posts`, in order, `kl` their nats from SFT.

        StopError where a score or a KL is not a number.
        """
        texts = [d.text for d in drawn]
        samples = [Sample(p.id, p.query, text) for p, text in zip(posts, texts, strict=True)]
        proxy = self.reward.score(samples)
        judged = [self.gold.judge(s.id, s.response) for s in samples] if self.gold else []
        found = System(
            policy=policy,
            temperature=temperature,
            split=split,
            posts=posts,
            texts=texts,
            tokens=[len(d.tokens) for d in drawn],
            ended=[d.has_eos for d in drawn],
            proxy=proxy,
            score=[g.total for g in judged] if judged else proxy,
            covered=[tuple(g.covered) for g in judged] or [()] * len(posts),
            wrong=[tuple(g.wrong) for g in judged] or [()] * len(posts),
            called=self.called.get(policy, ""),
            kl=list(kl),
        )
        _require_numbers(found)
        return found


def _require_numbers(system: System) -> None:
    """A mean without the rows that are no numbers would be of other posts than its neighbours'."""
    given = (
        ("scores", system.score, "the reward model"),
        ("KLs from SFT", system.kl, "the policy"),
    )
    for what, values, broken in given:
        if bad := sum(not math.isfinite(value) for value in values):
            raise StopError(
                f"{system.label} on {system.split}: {bad} of {len(values)} {what} are not finite "
                f"numbers, so it cannot be judged; train {broken} again with a lower learning "
                "rate, or without bfloat16 (compute.autocast=none, model.dtype=float32)"
            )


def judges_of(ctx: Context, where: StageDir) -> Judges:
    """The run's reward model, and the judge that its configuration names.

    A language model's replies are kept in `where`, so that judging again asks nothing twice.
    """
    cfg = ctx.config.evaluate
    reward_model = ctx.scalar(ctx.dirs["reward"].model).eval()
    shared = ctx.config.reward.layout == "shared"
    scorer = RewardScorer(reward_model, ctx.codec, size=cfg.micro_batch_size, shared=shared)
    comparator = None
    if cfg.judge == "llm":
        chat = chat_client(ctx.config.judge, where.replies)
        judge = LLMJudge(chat.ask, each=chat.each)
        comparator = ordered(judge, ctx.config.judge.order, ctx.seed)
    reinforce = ctx.config.reinforce
    called = {} if reinforce is None else {"reinforce": reinforce.algorithm}
    return Judges(scorer, ctx.gold() if cfg.judge == "gold" else None, comparator, called)


def policies(dirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The policies that the stages of a run have made, the untuned one first."""
    return tuple(name for name in POLICIES if name in dirs)


def written(texts: Sequence[str], ctx: Context) -> list[Drawn]:
    """Texts that no policy of this run drew, with the ids its tokenizer gives them, EOS last."""
    return [Drawn(text, tuple(ctx.codec.encode_response(text)), True) for text in texts]


def reference_system(
    posts: list[Demonstration], split: str, judges: Judges, ctx: Context
) -> System:
    """The references as a system of their own."""
    drawn = written([post.response for post in posts], ctx)
    return judges.system(REFERENCE, None, split, posts, drawn)


def parts(split: str, posts: list[Demonstration], gold: Gold | None) -> dict[str, list[int]]:
    """Which posts a result is given for: those of a split, or of a held-out split apart, those with
    a value and those with a wording that training never showed (a post may have both)."""
    if gold is None or not split.endswith("heldout"):
        return {split: list(range(len(posts)))}
    found: dict[str, list[int]] = {"unseen values": [], "unseen wordings": []}
    for at, post in enumerate(posts):
        worded = [mark.startswith("wording:") for mark in gold.sheets[post.id].heldout]
        if any(worded):
            found["unseen wordings"].append(at)
        if not all(worded):
            found["unseen values"].append(at)
    return {name: index for name, index in found.items() if index}


def describe(system: System, *, use_stemmer: bool = False) -> dict[str, Any]:
    """One row of the systems table."""
    score = bootstrap_mean(system.score, seed=0)
    row = {
        "policy": system.policy,
        "temperature": system.temperature,
        "split": system.split,
        "n": len(system.posts),
        "score": score[0],
        "score_low": score[1],
        "score_high": score[2],
        "proxy": sum(system.proxy) / len(system.proxy),
        "tokens": sum(system.tokens) / len(system.tokens),
        "eos_rate": sum(system.ended) / len(system.ended),
        "kl": None,
        "coverage": None,
        "wrong_fact_rate": None,
        **rouge(system.texts, [p.response for p in system.posts], use_stemmer=use_stemmer),
    }
    if system.kl:
        kl = bootstrap_mean(system.kl, seed=0)
        row["kl"] = {"value": kl[0], "low": kl[1], "high": kl[2]}
    if any(system.covered):
        wrong, stated = wrong_and_stated(system)
        row["coverage"] = sum(map(len, system.covered)) / len(system.covered)
        found = share(sum(wrong), sum(stated))
        row["wrong_fact_rate"] = {
            "value": found["rate"],
            "low": found["low"],
            "high": found["high"],
        }
    return row


def wrong_and_stated(system: System) -> tuple[list[int], list[int]]:
    """Per response: facts stated wrongly, and facts stated at all."""
    wrong = [len(w) for w in system.wrong]
    return wrong, [len(c) + w for c, w in zip(system.covered, wrong, strict=True)]


def wrong_fact_difference(tuned: System, sft: System) -> dict[str, Any]:
    """Wrong facts per stated fact, tuned minus SFT, paired by post with a 95% interval.

    A ratio of sums: its linearised per-post influence gives the interval (delta method).
    """
    head = {"temperature": tuned.temperature, "split": tuned.split}
    if not all(sum(wrong_and_stated(system)[1]) for system in (tuned, sft)):
        return {**head, **dict.fromkeys(("value", "low", "high", tuned.policy, sft.policy))}
    influences, rates = [], []
    for system in (tuned, sft):
        wrong, stated = wrong_and_stated(system)
        rate = sum(wrong) / sum(stated)
        mean_stated = sum(stated) / len(stated)
        influences.append(
            [(w - rate * s) / mean_stated + rate for w, s in zip(wrong, stated, strict=True)]
        )
        rates.append(rate)
    found = mean_difference(influences[0], influences[1], paired=True)
    return {
        **head,
        "value": found[0],
        "low": found[1],
        "high": found[2],
        tuned.policy: rates[0],
        sft.policy: rates[1],
    }

"""PPO's relatives without a critic: RLOO, GRPO, DAPO, REINFORCE++, ReMax, Nash-MD and the like."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import unread
from nplus.config.groups import GroupConfig
from nplus.config.on_policy import steering_contradictions
from nplus.config.relatives import ALGORITHMS, AlgorithmName, algorithm_tree

GROUP_ONLY = ("leave_one_out", "group_mean")
"""Baselines of a prompt's other responses."""


class ReinforceConfig(GroupConfig):
    """Policy gradients on groups of responses. Names are TRL's where they mean the same."""

    stage: ClassVar[str] = "reinforce"

    algorithm: AlgorithmName = "rloo"
    """Whose policy gradient: sets every key that the algorithms disagree on
    (`config/relatives.py`); keys given beside it win."""
    signal: Literal["score", "preference"] = "score"
    """What is maximised: the score, or `sigmoid(score - rival's) - 1/2` beside a response to the
    same prompt drawn from a mixture of policy and reference (Nash-MD)."""
    mixture_coef: float = Field(0.5, ge=0, le=1)
    """The reference's share in the log-probs of the rival's mixture (Munos et al. 2023, equation
    9); used by `signal=preference`."""
    baseline: Literal["leave_one_out", "group_mean", "batch_mean", "greedy", "none"] = (
        "leave_one_out"
    )
    """What is taken from a reward: the mean of the prompt's other responses, of all of them, of the
    batch, the score of its greedy response, or nothing."""
    scale: Literal["none", "group_std", "batch_std"] = "none"
    """What divides the difference: a standard deviation (unbiased) of the rewards, plus
    `scale_eps`."""
    scale_eps: float = Field(1e-4, ge=0)
    """Added to a deviation before it divides; TRL 1e-4, verl 1e-6."""
    whitening: Literal["none", "sequence", "token"] = "none"
    """Advantages less their mean, over their deviation, in the whole batch: one for each response
    (unbiased, `scale_eps` added; TRL's `normalize_advantages`), or over all tokens (biased, 1e-8
    under the root)."""
    overlong_share: float | None = Field(None, gt=0, le=1)
    """Last share of `sampling.response_length` in which the score falls linearly by up to
    `overlong_penalty` (DAPO, equation 13); None has none."""
    overlong_penalty: float = Field(1.0, gt=0)
    """What a response of full length loses."""
    mask_truncated_completions: bool = False
    """Leave responses without EOS out of the loss (DAPO's overlong filtering); their rewards still
    count in the group."""
    dynamic_sampling: bool = False
    """Leave out groups whose shaped scores are all equal (DAPO, section 3.2)."""
    dynamic_sampling_max: int = Field(1, ge=1)
    """Draws of an update at most: where groups were left out, as many further prompts are drawn
    from, again and again until the batch is full or so many draws were made (DAPO has no bound).
    1 draws nothing in their place."""

    ratio: Literal["token", "sequence", "sequence_mean"] = "sequence"
    """The probability ratio of new and old policy: of each token, of the response (RLOO), or its
    geometric mean over tokens (GSPO)."""
    aggregation: Literal["sequence", "token", "constant", "sequence_sum"] = "sequence"
    """What the loss divides by: tokens of the response, then responses; all tokens of the
    minibatch (DAPO); responses times `sampling.response_length` (Dr. GRPO); responses alone."""
    importance: Literal["none", "truncate", "mask"] = "truncate"
    """Of responses that older weights drew (`max_staleness`): each advantage is multiplied by the
    probability ratio, at the level of `ratio`, of the policy before the update and the one that
    drew, bounded by `importance_cap` (`truncate`, TIS), or where it is beyond `importance_cap` or 1
    over it by 0 (`mask`, MIS). `none` takes them for fresh. With `old_logprobs=sampler` the clipped
    ratio is that of new policy and sampler, and there is nothing left to correct."""
    importance_cap: float = Field(2.0, gt=1)
    """C: the largest importance weight."""
    cliprange: float = Field(0.2, gt=0)
    """Ratio clip."""
    cliprange_high: float | None = Field(None, gt=0)
    """The ratio's upper clip where it differs from the lower one; None takes `cliprange`."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where KL to the reference is priced: in the reward, as of the policy that sampled, or in the
    loss, with a gradient of its own."""
    kl_credit: Literal["sequence", "to_go"] = "sequence"
    """With `kl_in=reward`: the KL of a response lowers its reward before the baseline (RLOO), or
    each token pays for its own and those after it (REINFORCE++)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token KL estimator. In the loss, k2 has the gradient of KL(policy || reference), k3 that
    of KL(reference || policy), both under the policy's own samples."""
    use_bias_correction_kl: bool = False
    """With `kl_in=loss`: multiply KL by the ratio of new and old policy, gradient and all, which
    makes the gradient of k1 and k3 that of KL(policy || reference) also under old samples
    (DeepSeek-V3.2, 2512.02556; TRL's default). Of k2 it makes none, which is refused."""
    kl_coef: float = Field(0.05, ge=0)
    """KL coefficient beta."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response that an adaptive beta steers to, from a `kl_coef` above 0 on; None keeps it
    fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Episodes over which an adaptive beta reacts."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_algorithm(cls, given: Any) -> Any:
        """Keys that are not given are the algorithm's."""
        if not isinstance(given, dict) or given.get("algorithm") not in ALGORITHMS:
            return given
        return algorithm_tree(given["algorithm"]) | given

    @model_validator(mode="after")
    def _meant(self) -> Self:
        for why in contradictions(self):
            raise ValueError(why)
        return self

    @property
    def rival(self) -> Literal["none", "greedy", "mixture"]:
        """See `GroupConfig`."""
        if self.signal == "preference":
            return "mixture"
        return "greedy" if self.baseline == "greedy" else "none"

    @property
    def rival_share(self) -> float:
        """See `GroupConfig`."""
        return self.mixture_coef


def contradictions(cfg: ReinforceConfig) -> list[str]:
    """Settings that cannot both be meant, each with the mend."""
    return [*_of_groups(cfg), *_of_draws(cfg), *_of_the_loss(cfg), *_of_readers(cfg)]


def _of_readers(cfg: ReinforceConfig) -> list[str]:
    readers = {
        "mixture_coef": (cfg.signal == "preference", f"signal={cfg.signal}", "signal=preference"),
        "importance_cap": (cfg.max_staleness, "max_staleness=0", "max_staleness=1"),
        "overlong_penalty": (cfg.overlong_share, "overlong_share=null", "overlong_share=0.2"),
        "kl_credit": (cfg.kl_in == "reward", f"kl_in={cfg.kl_in}", "kl_in=reward"),
        "use_bias_correction_kl": (cfg.kl_in == "loss", f"kl_in={cfg.kl_in}", "kl_in=loss"),
    }
    return list(unread(cfg, readers))


def _of_groups(cfg: ReinforceConfig) -> list[str]:
    found = []
    if cfg.num_generations == 1:
        alone = [f"baseline={cfg.baseline}"] if cfg.baseline in GROUP_ONLY else []
        alone += [f"scale={cfg.scale}"] if cfg.scale == "group_std" else []
        alone += ["dynamic_sampling=true"] if cfg.dynamic_sampling else []
        found += [
            f"num_generations=1 with {one}: a group of one has nothing to compare with; set "
            "num_generations=2 or more"
            for one in alone
        ]
    if cfg.signal == "preference" and cfg.overlong_share is not None:
        found.append(
            f"overlong_share={cfg.overlong_share} with signal=preference: of two equal responses "
            "the policy's alone would pay for its length; set overlong_share=null"
        )
    if cfg.signal == "preference" and cfg.baseline == "greedy":
        found.append(
            "signal=preference with baseline=greedy: the rival is drawn from a mixture; set "
            "baseline=none"
        )
    return found


def _of_draws(cfg: ReinforceConfig) -> list[str]:
    """Of further draws, and of what older weights drew."""
    found = []
    draws = f"dynamic_sampling_max={cfg.dynamic_sampling_max}"
    if cfg.dynamic_sampling_max > 1 and not cfg.dynamic_sampling:
        found.append(
            f"{draws} with dynamic_sampling=false: no group is left out that another could "
            "replace; set dynamic_sampling=true, or dynamic_sampling_max=1"
        )
    if cfg.dynamic_sampling_max > 1 and cfg.max_staleness:
        found.append(
            f"{draws} with max_staleness={cfg.max_staleness}: what was drawn ahead is not drawn "
            "again; set max_staleness=0, or dynamic_sampling_max=1"
        )
    weighed = cfg.max_staleness and cfg.importance != "none" and cfg.old_logprobs == "trainer"
    if weighed and "old" not in cfg.tempered:
        found.append(
            f"tempered without old and max_staleness={cfg.max_staleness}: the sampler's log-probs "
            "are tempered, and importance weights would set them against others; give old back to "
            "tempered, or set importance=none"
        )
    return found


def _of_the_loss(cfg: ReinforceConfig) -> list[str]:
    """Of the ratio's level and the price of KL."""
    found = []
    if cfg.ratio != "token" and cfg.aggregation != "sequence":
        found.append(
            f"ratio={cfg.ratio} with aggregation={cfg.aggregation}: a response has one ratio, that "
            "its length must not weigh; set aggregation=sequence, or ratio=token"
        )
    uncorrected = not cfg.use_bias_correction_kl
    if cfg.kl_in == "loss" and cfg.kl_estimator == "k1" and cfg.kl_coef and uncorrected:
        found.append(
            "kl_in=loss with kl_estimator=k1: its gradient is 0 in expectation; set "
            "kl_estimator=k2 or k3, or kl_in=reward, or use_bias_correction_kl=true"
        )
    if cfg.kl_in == "loss" and cfg.kl_estimator == "k2" and cfg.use_bias_correction_kl:
        found.append(
            "use_bias_correction_kl=true with kl_estimator=k2: the gradient of the ratio times k2 "
            "is not that of a KL; set kl_estimator=k1 or k3, or use_bias_correction_kl=false"
        )
    if cfg.ratio != "token" and cfg.kl_in == "reward" and cfg.kl_credit == "to_go":
        found.append(
            f"kl_credit=to_go with ratio={cfg.ratio}: tokens have advantages of their own, a "
            "response one ratio; set kl_credit=sequence, or ratio=token"
        )
    return found + steering_contradictions(cfg, cfg.kl_coef, cfg.kl_target)

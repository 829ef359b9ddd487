"""PPO's relatives without a critic: RLOO, GRPO, DAPO, REINFORCE++, ReMax, Nash-MD and the like."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config
from nplus.config.optim import OptimConfig
from nplus.config.relatives import ALGORITHMS, AlgorithmName, algorithm_tree
from nplus.config.sampling import SamplingConfig

GROUP_ONLY = ("leave_one_out", "group_mean")
"""Baselines of a prompt's other responses."""


class ReinforceConfig(Config):
    """Policy gradients on groups of responses. Names are TRL's where they mean the same."""

    algorithm: AlgorithmName = "rloo"
    """Whose policy gradient: sets every key that the algorithms disagree on
    (`config/relatives.py`); keys given beside it win."""
    total_episodes: int = Field(1_000_000, ge=1)
    """Responses sampled in all; updates = total_episodes // batch_size."""
    batch_size: int = Field(512, ge=1)
    """Responses per update, over all processes: batch_size / num_generations prompts."""
    num_generations: int = Field(4, ge=1)
    """Responses to each prompt (K; the group)."""
    num_iterations: int = Field(1, ge=1)
    """Passes over each rollout batch."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimiser steps per pass."""
    micro_batch_size: int = Field(16, ge=1)
    """Rows of one forward and backward; changes memory, never the result."""
    rollout_micro_batch_size: int = Field(64, ge=1)
    """Rows of one generation or scoring forward."""
    reshuffle: bool = True
    """A new order of the prompts at each pass over them (Detail E2)."""
    optim: OptimConfig = OptimConfig(lr_scheduler_type="linear")
    sampling: SamplingConfig = SamplingConfig()
    """Rollout sampling (details E4, E5)."""
    tempered: tuple[Literal["old", "reference", "new"], ...] = ("old", "reference", "new")
    """Which log-probs are of the tempered distribution (Detail E5)."""
    stop_token: Literal["eos", "none"] = "eos"
    """`eos`: what follows the first EOS is cut away before the score (Detail E7)."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probs from a forward of the training path, or the sampler's own (Detail E6)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of the training forwards; log-probs then differ from the rollout's (Detail B4)."""

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
    missing_eos_penalty: float | None = Field(1.0, gt=0)
    """What a response without EOS costs (Detail E8); None keeps the reward model's score."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """`replace`: the score becomes minus the penalty; `subtract`: it loses the penalty."""
    overlong_share: float | None = Field(None, gt=0, le=1)
    """Last share of `sampling.response_length` in which the score falls linearly by up to
    `overlong_penalty` (DAPO, equation 13); None has none."""
    overlong_penalty: float = Field(1.0, gt=0)
    """What a response of full length loses."""
    mask_truncated_completions: bool = False
    """Leave responses without EOS out of the loss (DAPO's overlong filtering); their rewards still
    count in the group."""
    dynamic_sampling: bool = False
    """Leave out groups whose shaped scores are all equal (DAPO, section 3.2; no others are drawn in
    their place)."""

    ratio: Literal["token", "sequence", "sequence_mean"] = "sequence"
    """The probability ratio of new and old policy: of each token, of the response (RLOO), or its
    geometric mean over tokens (GSPO)."""
    aggregation: Literal["sequence", "token", "constant", "sequence_sum"] = "sequence"
    """What the loss divides by: tokens of the response, then responses; all tokens of the
    minibatch (DAPO); responses times `sampling.response_length` (Dr. GRPO); responses alone."""
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
    kl_coef: float = Field(0.05, ge=0)
    """KL coefficient beta."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response that an adaptive beta steers to; None keeps it fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Episodes over which an adaptive beta reacts."""

    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many updates; 0 only at the end."""
    sample_steps: int = Field(5, ge=1)
    """Write readable samples every so many updates."""
    target_kl_stop: float | None = Field(None, gt=0)
    """Stop with an error when the mean sequence KL passes this; None never stops."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_algorithm(cls, given: Any) -> Any:
        """Keys that are not given are the algorithm's."""
        if not isinstance(given, dict) or given.get("algorithm") not in ALGORITHMS:
            return given
        return algorithm_tree(given["algorithm"]) | given

    @model_validator(mode="after")
    def _plan(self) -> Self:
        require_plan(self)
        for why in contradictions(self):
            raise ValueError(why)
        return self

    @property
    def prompts(self) -> int:
        """Prompts of one update."""
        return self.batch_size // self.num_generations


def require_plan(cfg: Any) -> None:
    """ValueError where episodes, batches, groups and minibatches do not divide."""
    if cfg.total_episodes < cfg.batch_size:
        raise ValueError(
            f"total_episodes={cfg.total_episodes} is less than batch_size={cfg.batch_size}: "
            "not one update; raise total_episodes or lower batch_size"
        )
    parts = (("num_generations", cfg.num_generations), ("num_mini_batches", cfg.num_mini_batches))
    for key, part in parts:
        if cfg.batch_size % part:
            raise ValueError(
                f"batch_size={cfg.batch_size} is not a multiple of {key}={part}; choose one that "
                "divides it"
            )
    minibatch = cfg.batch_size // cfg.num_mini_batches
    if minibatch % cfg.micro_batch_size:
        raise ValueError(
            f"a minibatch of {minibatch} rows is not a multiple of "
            f"micro_batch_size={cfg.micro_batch_size}; choose one that divides it"
        )


def contradictions(cfg: ReinforceConfig) -> list[str]:
    """Settings that cannot both be meant, each with the mend."""
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
    if cfg.ratio != "token" and cfg.aggregation != "sequence":
        found.append(
            f"ratio={cfg.ratio} with aggregation={cfg.aggregation}: a response has one ratio, that "
            "its length must not weigh; set aggregation=sequence, or ratio=token"
        )
    if cfg.kl_in == "loss" and cfg.kl_estimator == "k1" and cfg.kl_coef:
        found.append(
            "kl_in=loss with kl_estimator=k1: its gradient is 0 in expectation; set "
            "kl_estimator=k2 or k3, or kl_in=reward"
        )
    if cfg.ratio != "token" and cfg.kl_in == "reward" and cfg.kl_credit == "to_go":
        found.append(
            f"kl_credit=to_go with ratio={cfg.ratio}: tokens have advantages of their own, a "
            "response one ratio; set kl_credit=sequence, or ratio=token"
        )
    if cfg.signal == "preference" and cfg.baseline == "greedy":
        found.append(
            "signal=preference with baseline=greedy: the rival is drawn from a mixture; set "
            "baseline=none"
        )
    if cfg.stop_token == "none" and cfg.sampling.stop == "eos":
        found.append(
            "stop_token=none with sampling.stop=eos: there is nothing after EOS to keep; "
            "set sampling.stop=length"
        )
    if "old" not in cfg.tempered and cfg.old_logprobs == "sampler":
        found.append(
            "tempered without old and old_logprobs=sampler: the sampler's log-probs are tempered; "
            "set old_logprobs=trainer"
        )
    return found

"""Ways to a better policy, side by side: the same models, prompts, reward model and rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nplus.config import (
    BatchConfig,
    CurveConfig,
    DPOConfig,
    OnlineConfig,
    OnlineDPOConfig,
    OptimConfig,
    PPOConfig,
    ReinforceConfig,
    RunConfig,
    SamplingConfig,
)
from nplus.recipes.toy import RESPONSE_LENGTH, toy

ROLLOUTS = 4_096
"""Responses drawn and scored in training, by every algorithm."""
BATCH, UPDATES_APART = 64, 8
"""Rollouts of an update; updates from one judged policy to the next."""
SAMPLES, ROUNDS = 8, 4
"""Of the loops: responses to a prompt, and rounds of as many rollouts."""
BEST_OF = (1, 2, 4, 8, 16, 32)

# Learning rates, KL coefficients, betas and the like: the best of six settings of each algorithm on
# validation posts of another seed (docs/lab-log.md).


def _run(name: str, **stages: object) -> RunConfig:
    """The toy road up to the reward model, with these stages instead of PPO, each judged along its
    way on the test posts."""
    base = toy()
    common = {
        "recipe": f"toy:{name}",
        "ppo": None,
        "model": base.model.model_copy(update={"attn_implementation": "batched"}),
        "curve": CurveConfig(split="test", max_rows=400),
    }
    return base.model_copy(update=common | stages)


def _budget(learning_rate: float) -> dict[str, object]:
    """What every algorithm that samples at each update shares."""
    return {
        "total_episodes": ROLLOUTS,
        "batch_size": BATCH,
        "micro_batch_size": 32,
        "keep_policy_steps": UPDATES_APART,
        "sample_steps": UPDATES_APART,
        "optim": OptimConfig(learning_rate=learning_rate, lr_scheduler_type="linear"),
        "sampling": SamplingConfig(response_length=RESPONSE_LENGTH),
    }


def _grouped(learning_rate: float) -> dict[str, object]:
    """The same of those whose baseline is the group: passes and parts of a pass as PPO's."""
    passes = {"num_iterations": 2, "num_mini_batches": 2, "layout": "shared"}
    return _budget(learning_rate) | passes


def _loop(train: DPOConfig) -> OnlineConfig:
    """Rounds of sample, score, pair and train, with the rollouts of the others in all."""
    return OnlineConfig(
        rounds=ROUNDS,
        prompts=ROLLOUTS // ROUNDS // SAMPLES,
        samples=SAMPLES,
        draw=("current@0.7",),
        response_length=RESPONSE_LENGTH,
        micro_batch_size=128,
        piece=256,
        missing_eos_penalty=1.0,
        valid_prompts=100,
        choose="last",
        train=train,
    )


def _train(learning_rate: float, **loss: object) -> DPOConfig:
    found = {
        "optim": OptimConfig(learning_rate=learning_rate, warmup_steps=5),
        "batch": BatchConfig(batch_size=32, micro_batch_size=16),
        "epochs": 2,
        "layout": "shared",
    }
    return DPOConfig.model_validate(found | loss)


def best_of_n() -> RunConfig:
    """The toy road without tuning: the reward model takes the best of n responses of SFT's."""
    run = _run("best_of_n")
    assert run.curve is not None
    return run.model_copy(update={"curve": run.curve.model_copy(update={"best_of": BEST_OF})})


def ppo() -> RunConfig:
    """The toy road with PPO, judged along its way."""
    passes = {"num_ppo_epochs": 2, "num_mini_batches": 2}
    settings = {"value_learning_rate": 1.5e-3, "kl_coef": 0.06, **passes}
    return _run("ppo", ppo=PPOConfig.model_validate(_budget(3e-4) | settings))


def rloo() -> RunConfig:
    """The toy road with RLOO, judged along its way."""
    settings = {"algorithm": "rloo", "kl_coef": 0.06}
    return _run("rloo", reinforce=ReinforceConfig.model_validate(_grouped(1.5e-4) | settings))


def grpo() -> RunConfig:
    """The toy road with GRPO, judged along its way."""
    settings = {"algorithm": "grpo", "kl_coef": 0.2}
    return _run("grpo", reinforce=ReinforceConfig.model_validate(_grouped(3e-4) | settings))


def online_dpo() -> RunConfig:
    """The toy road with DPO at every update, judged along its way."""
    settings = {"num_generations": 4, "beta": 0.3, "layout": "shared"}
    return _run("online_dpo", online_dpo=OnlineDPOConfig.model_validate(_budget(3e-4) | settings))


def iterative() -> RunConfig:
    """The toy road with rounds of DPO on the policy's best and worst, judged round by round."""
    return _run("iterative", online=_loop(_train(2e-4, beta=0.3, label_smoothing=0.2)))


def raft() -> RunConfig:
    """The toy road with rounds of SFT on the policy's best responses, judged round by round."""
    return _run("raft", online=_loop(_train(2e-4, loss_type="raft", epochs=8)))


def algorithms() -> RunConfig:
    """A study: seven algorithms with as many rollouts under three seeds; these settings are PPO's.

    `nplus run toy:algorithms` runs them all.
    """
    return ppo().model_copy(update={"recipe": "toy:algorithms"})


CELLS: Mapping[str, Callable[[], RunConfig]] = {
    "best of n": best_of_n,
    "PPO": ppo,
    "RLOO": rloo,
    "GRPO": grpo,
    "online DPO": online_dpo,
    "iterative DPO": iterative,
    "RAFT": raft,
}
"""What is compared, each a recipe of its own."""

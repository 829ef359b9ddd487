"""Trainers of all stages in float64 on ragged rows, from the same weights every time."""

import pytest

from nplus.algorithms import ppo
from nplus.config import DPOConfig, OnlineDPOConfig, ReinforceConfig
from nplus.config.batch_plan import batch_plan
from nplus.config.relatives import ALGORITHMS
from nplus.data.collate import PairRow
from nplus.data.tokens import TextRules
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration
from nplus.seeding import stream
from nplus.stages import dpo, on_policy, online_dpo, reward, sft
from nplus.stages import ppo as ppo_stage
from nplus.stages import reinforce as reinforce_stage
from nplus.training.optim import Optimizer

UPDATES = 8
KINDS = {"reinforce": ReinforceConfig, "online_dpo": OnlineDPOConfig}
EOS, PAD = 0, 1


class Ids:
    """A tokenizer of single letters."""

    eos_id, pad_id, rules = EOS, PAD, TextRules()

    def encode_queries(self, queries):
        return [[2 + ord(letter) % 59 for letter in query] for query in queries]

    def decode_response(self, ids):
        return " ".join(map(str, ids))


def words(n, what, low, high):
    draw = stream(0, "trainer", n, what)
    return draw.integers(2, 61, size=int(draw.integers(low, high))).tolist()


ROWS = [(words(n, 0, 2, 9), [*words(n, 1, 1, 8), EOS]) for n in range(30)]
PAIRS = [PairRow(*row, [*words(n, 2, 1, 8), EOS]) for n, row in enumerate(ROWS)]


@pytest.fixture(scope="session")
def ppo_trainer_of(tiny_causal, stage_context):
    """`ppo_trainer_of(topology=None, compute={}, model={}, **ppo)`: PPO, 8 updates."""

    def build(topology=None, compute=None, model=None, **changed):
        settings = {
            "batch_size": 8,
            "micro_batch_size": 4,
            "num_mini_batches": 2,
            "total_episodes": 8 * UPDATES,
            "num_ppo_epochs": 2,
            "optim": {"learning_rate": 3e-3},
            "sampling": {"response_length": 7},
            **changed,
        }
        ctx = stage_context(
            codec=Ids(),
            topology=topology,
            compute=compute or {},
            model=model or {},
            data={"max_response_tokens": 6},
            ppo=settings,
        )
        cfg = ctx.config.ppo
        policy, reference = (tiny_causal().double() for _ in range(2))
        reward_model = ScalarModel.from_causal(tiny_causal(2).double(), pad_id=PAD, seed=5)
        critic = reward_model.copy()
        queries = ["abcdefghi"[: 1 + i % 9] + str(i) for i in range(11)]
        posts = [Demonstration(f"p{i}", query, "", {}) for i, query in enumerate(queries)]
        return ppo_stage.Trainer(
            ctx=ctx,
            plan=batch_plan(cfg),
            posts=posts,
            policy=policy,
            reference=reference.requires_grad_(False),
            reward_model=reward_model.requires_grad_(False),
            critic=critic.requires_grad_(True),
            optimizers={
                "policy": Optimizer(policy.named_parameters(), cfg.optim),
                "critic": Optimizer(critic.named_parameters(), cfg.optim),
            },
            kl=ppo.KLController(cfg.kl_coef, target=cfg.kl_target, horizon=cfg.kl_horizon),
            gold=None,
        )

    return build


@pytest.fixture(scope="session")
def group_trainer_of(tiny_causal, stage_context):
    """`group_trainer_of(algorithm, topology=None, compute={}, model={}, **changed)`: 8 updates
    of 4 prompts with 2 responses each, or 8 with one."""

    def build(algorithm, topology=None, compute=None, model=None, **changed):
        stage, preset = "reinforce", {"algorithm": algorithm}
        if algorithm == "online_dpo":
            stage, preset = algorithm, {}
        alone = ALGORITHMS.get(algorithm, {}).get("num_generations") == 1
        settings = {
            **preset,
            "batch_size": 8,
            "num_generations": 1 if alone else 2,
            "micro_batch_size": 4,
            "num_mini_batches": 2,
            "num_iterations": 2,
            "total_episodes": 8 * UPDATES,
            "optim": {"learning_rate": 5e-4},
            "missing_eos_penalty": None,  # few responses end here, and equal groups teach nothing
            "sampling": {"response_length": 7},
            **changed,
        }
        ctx = stage_context(
            codec=Ids(),
            topology=topology,
            compute=compute or {},
            model=model or {},
            data={"max_response_tokens": 6},
            ppo=None,
            **{stage: KINDS[stage].model_validate(settings).model_dump()},
        )
        policy, reference = (tiny_causal().double() for _ in range(2))
        reward_model = ScalarModel.from_causal(tiny_causal(2).double(), pad_id=PAD, seed=5)
        queries = ["abcdefghi"[: 1 + i % 9] + str(i) for i in range(11)]
        posts = [Demonstration(f"p{i}", query, "", {}) for i, query in enumerate(queries)]
        if algorithm == "online_dpo":
            method = online_dpo.PairLoss(ctx, policy, reference)
        else:
            method = reinforce_stage.PolicyGradient(ctx, policy)
        return on_policy.Trainer.of(ctx, method, policy, reference, reward_model, posts)

    return build


@pytest.fixture(scope="session")
def row_trainer_of(tiny_causal, stage_context):
    """`row_trainer_of("sft" | "reward" | "dpo", topology=None, rows=24, micro=6, **changed)`:
    steps of so many rows."""

    def build(stage, topology=None, rows=24, micro=6, attn="sdpa", **changed):
        batch = {"batch_size": rows, "micro_batch_size": micro}
        settings = {"batch": batch, "optim": {"learning_rate": 1e-3}, "epochs": 8}
        cfg = DPOConfig(**settings) if stage == "dpo" else settings
        ctx = stage_context(codec=Ids(), topology=topology, **{stage: cfg}, **changed)
        model = tiny_causal(spread=0.02).double()
        model.set_attn_implementation(attn)
        if stage == "sft":
            cfg = ctx.config.sft
            return sft.trainer(
                model,
                ROWS,
                ctx,
                name="sft",
                epochs=cfg.epochs,
                optim=cfg.optim,
                batch=cfg.batch,
                pad_id=PAD,
                response_weight=2.0,
            )
        if stage == "reward":
            return reward.trainer(ScalarModel.from_causal(model, pad_id=PAD, seed=0), PAIRS, ctx)
        reference = tiny_causal(seed=1, spread=0.02).double().requires_grad_(False)
        return dpo.trainer(model, reference, PAIRS, ctx, ctx.config.dpo, name="dpo")

    return build


@pytest.fixture(scope="session")
def pair_trainer_of(tiny_causal, stage_context):
    """`pair_trainer_of(loss, topology=None, micro=4, compute={}, **dpo)`: 8 pairs a step, with
    margins and designated responses."""
    rows = [
        row._replace(margin=0.25 * (n % 5), designated=(n % 3 == 0, n % 3 == 1))
        for n, row in enumerate(PAIRS)
    ]

    def build(loss, topology=None, micro=4, compute=None, **changed):
        cfg = DPOConfig(
            loss_type=loss,
            beta=0.3,
            batch={"batch_size": 8, "micro_batch_size": micro},
            optim={"learning_rate": 1e-3},
            epochs=3,
            **changed,
        )
        ctx = stage_context(codec=Ids(), topology=topology, dpo=cfg, compute=compute or {})
        policy, reference = (tiny_causal(seed, spread=0.05).double() for seed in (0, 1))
        reference.requires_grad_(False)
        return dpo.trainer(
            policy, reference if cfg.has_reference else None, rows, ctx, cfg, name="dpo"
        )

    return build

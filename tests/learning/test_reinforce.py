"""Every algorithm without a critic finds the rewarded token, in seconds."""

import pytest
import torch

from nplus.algorithms import reinforce
from nplus.batches import GroupRollout
from nplus.config import ReinforceConfig, SamplingConfig
from nplus.config.relatives import ALGORITHMS
from nplus.engines.kv import KVEngine
from nplus.engines.mixture import mixture_engine
from nplus.models.scalar import ScalarModel
from nplus.rollout import Scores, collect, generate
from nplus.stages.drawing import noise
from nplus.stages.groups import GREEDY
from nplus.stages.on_policy import Trainer
from nplus.stages.reinforce import PolicyGradient

EOS, PAD, TOKEN = 0, 1, 7
ROWS, WIDTH = 64, 6


def rule(generation):
    """[B] 1 for a response that says TOKEN, else 0."""
    said = (generation.tokens_BR == TOKEN) & generation.response_mask_BR
    return said.any(1).float()


@pytest.fixture
def trained(tiny_causal, stage_context, prompts_of_lengths):
    """`trained(algorithm, updates, **changed)`: the rollout metrics of each update."""

    def run(algorithm, updates=16, **changed):
        settings = {
            "algorithm": algorithm,
            "batch_size": ROWS,
            "micro_batch_size": ROWS,
            "total_episodes": ROWS * updates,
            "num_iterations": 4,
            "missing_eos_penalty": None,
            "overlong_share": None,
            "kl_coef": 0.02,
            "optim": {"learning_rate": 3e-3},
            "sampling": {"temperature": 1.0, "response_length": WIDTH},
            **changed,
        }
        cfg = ReinforceConfig.model_validate(settings)
        ctx = stage_context(ppo=None, data={"max_response_tokens": 4}, reinforce=cfg.model_dump())
        policy, reference = (tiny_causal(spread=0.05) for _ in range(2))
        method = PolicyGradient(ctx, policy)
        scorer = ScalarModel.from_causal(reference, pad_id=PAD, seed=0)  # `rule` takes its place
        trainer = Trainer.of(ctx, method, policy, reference, scorer, [])
        engine = KVEngine(policy, eos_id=EOS, pad_id=PAD)
        mixed = mixture_engine(policy, reference, cfg.mixture_coef, eos_id=EOS, pad_id=PAD)
        greedy = SamplingConfig(temperature=GREEDY, response_length=WIDTH)
        told = []
        for step in range(updates):
            few = prompts_of_lengths([2 + n % 3 for n in range(cfg.prompts)], seed=step)
            prompts = few.rows(torch.arange(cfg.prompts).repeat_interleave(cfg.num_generations))
            numbers = range(cfg.num_generations)
            uniforms = (0, f"learning {step}", few.keys, cfg.sampling, numbers)
            rollout = collect(
                engine,
                prompts,
                cfg.sampling,
                noise(*uniforms),
                policy=policy,
                reference=reference,
                score=lambda generation: Scores.of(rule(generation)),
                eos_id=EOS,
                size=ROWS,
            )
            rival_B = torch.zeros(ROWS)
            if cfg.baseline == "greedy":
                rival_B = rule(
                    generate(engine, prompts, greedy, torch.full((ROWS, WIDTH), 0.5), size=ROWS)
                )
            if cfg.signal == "preference":
                noise_BR = noise(1, *uniforms[1:])
                rival_B = rule(generate(mixed, prompts, cfg.sampling, noise_BR, size=ROWS))
            grouped = GroupRollout(rollout, rival_B, torch.ones(ROWS).bool())
            batch, metrics = reinforce.credit(grouped, cfg)
            trainer.train_on(method.cut(batch, step), step)
            told.append({name: metric.value for name, metric in metrics.items()})
        return told

    return run


def mean_of(rows, name):
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_finds_the_rewarded_token(algorithm, trained):
    # Whole responses have ratios far from 1 soon: GSPO's narrow range is for large models.
    wide = {"cliprange": 0.2, "cliprange_high": 0.2} if algorithm == "gspo" else {}
    told = trained(algorithm, **wide)
    before, after = mean_of(told[:2], "objective/scores"), mean_of(told[-3:], "objective/scores")
    assert before < 0.3
    assert after > 0.7
    assert told[0]["objective/kl"] == 0.0
    assert 0.5 < mean_of(told[-3:], "objective/kl") < 25.0


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_high_price_on_kl_holds_the_policy(algorithm, trained):
    cheap, dear = (trained(algorithm, updates=8, kl_coef=price)[-2:] for price in (0.02, 1.0))
    assert mean_of(dear, "objective/kl") < 0.5 * mean_of(cheap, "objective/kl")

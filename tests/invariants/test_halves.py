"""Two processes that share PPO's work, and sampling, come to what one process comes to."""

import pytest
import torch

from nplus.batches import PromptBatch
from nplus.config import SamplingConfig
from nplus.engines.halves import halved, halves
from nplus.engines.kv import KVEngine
from nplus.stages import compute

UPDATES = 8
pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def trainer(ppo_trainer_of, monkeypatch):
    """`trainer(side_by_side, **ppo)`: float64, ragged prompts and responses."""
    monkeypatch.setattr(compute, "WORTH_SHARING", 0)
    made = []

    def build(side_by_side, **changed):
        made.append(ppo_trainer_of(compute={"side_by_side": side_by_side}, **changed))
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.mark.parametrize("changed", [{}, {"normalise": "micro", "micro_batch_size": 1}])
def test_the_same_run_in_one_process_and_in_two(trainer, changed):
    alone, shared = trainer(False, **changed), trainer(True, **changed)
    for step in range(UPDATES):
        one, two = alone.update(step), shared.update(step)
        assert (alone.beside is None, shared.beside is None) == (True, False)
        for name in ("tokens_BR", "response_mask_BR"):
            ours, theirs = (getattr(x.rollout.generation, name) for x in (two, one))
            assert torch.equal(ours, theirs)
        assert two.rollout.generation.prompts.keys == one.rollout.generation.prompts.keys
        assert two.responses == one.responses
        found, expected = ({**x.metrics, "tokens_per_second": 0.0} for x in (two, one))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    for mine, other in zip(shared.policy.parameters(), alone.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_two_processes_draw_what_one_draws(tiny_causal):
    model = tiny_causal().double()
    g = torch.Generator().manual_seed(0)
    tokens_BP = torch.randint(2, 61, (9, 6), generator=g)
    tokens_BP[3:6] = tokens_BP[2]  # four samples of one prompt
    mask_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    mask_BP[0, :4] = mask_BP[8, :2] = False
    prompts = PromptBatch(tokens_BP, mask_BP, tuple(f"p{i}" for i in range(9)))
    noise_BR = torch.rand(9, 8, generator=g, dtype=torch.float64)
    engine = KVEngine(model, eos_id=0, pad_id=1, version=3)
    sampling = SamplingConfig(response_length=8)
    one = engine.generate(prompts, sampling, noise_BR)
    with halved(engine) as both:
        two = both.generate(prompts, sampling, noise_BR)
        first = both.generate(prompts.rows(torch.tensor([0])), sampling, noise_BR[:1])
    assert torch.equal(two.tokens_BR, one.tokens_BR)
    assert torch.equal(first.tokens_BR, one.tokens_BR[:1])
    assert (two.prompts.keys, two.policy_version) == (one.prompts.keys, 3)
    torch.testing.assert_close(two.logprobs_BR, one.logprobs_BR)
    own, other = halves(prompts)
    assert sorted([*own.tolist(), *other.tolist()]) == list(range(9))
    assert {2, 3, 4, 5} <= set(own.tolist()) or {2, 3, 4, 5} <= set(other.tolist())
    assert abs(len(own) - len(other)) <= 1

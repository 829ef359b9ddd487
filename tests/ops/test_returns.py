import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nplus.ops.responses import response_mask_BR, value_mask_BR
from nplus.ops.returns import gae, missing_eos, token_rewards

EOS = 0


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = sum over k of (gamma lam)^k delta_{t+k}, every term spelt out."""
    steps = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * ahead[t] - values[t] for t in range(steps)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(steps - t)) for t in range(steps)]


numbers = st.floats(-5, 5)
unit = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9), unit, unit)
def test_gae_against_the_definition(steps, gamma, lam):
    rewards, values = (list(x) for x in zip(*steps, strict=True))
    advantages, returns = gae(
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([values], dtype=torch.float64),
        gamma=gamma,
        lam=lam,
    )
    expected = gae_by_definition(rewards, values, gamma, lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert (returns - advantages)[0].tolist() == pytest.approx(values, abs=1e-9)


@pytest.mark.detail("F5")
def test_lambda_one_returns_are_the_rewards_to_come():
    # Detail F5.
    rewards = [0.5, -1.0, 2.0, 0.25]
    _, returns = gae(
        torch.tensor([rewards]), torch.tensor([[3.0, -1.0, 0.5, 2.0]]), gamma=1.0, lam=1.0
    )
    expected = [sum(rewards[t:]) for t in range(4)]
    assert returns[0].tolist() == pytest.approx(expected, abs=1e-5)


# (tokens, step of the score): Detail F4, one step after the EOS while there is one.
LANDINGS = [
    ([0, 4, 5, 6], 1, 0),
    ([4, 5, 0, 6], 3, 2),
    ([4, 0, 5, 0], 2, 1),
    ([4, 5, 6, 0], 3, 3),
    ([4, 5, 6, 7], 3, 3),
]


@pytest.mark.parametrize(("tokens", "after", "on"), LANDINGS)
def test_where_the_score_lands(tokens, after, on):
    mask = response_mask_BR(torch.tensor([tokens]), EOS)
    kl = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    for score_step, step in (("after_eos", after), ("eos", on)):
        rewards = token_rewards(torch.tensor([7.0]), kl, mask, kl_coef=0.5, score_step=score_step)
        expected = [
            (-0.5 * kl[0, j].item() if mask[0, j] else 0.0) + (7.0 if j == step else 0.0)
            for j in range(4)
        ]
        assert rewards[0].tolist() == pytest.approx(expected)


def test_tokens_after_eos_change_nothing():
    scores, values = torch.tensor([1.5]), torch.tensor([[0.2, 0.4, 0.9, 1.4, 7.0]])
    outcomes = []
    for junk in (0.0, math.nan):
        mask = response_mask_BR(torch.tensor([[5, 6, EOS, 7, 8]]), EOS)
        kl = torch.tensor([[0.2, -0.2, 0.4, junk, junk]])
        rewards = token_rewards(scores, kl, mask, kl_coef=0.05)
        outcomes.append(gae(rewards, values.masked_fill(~value_mask_BR(mask), 0.0), gamma=1, lam=1))
    for clean, dirty in zip(*outcomes, strict=True):
        assert clean.equal(dirty)


@pytest.mark.detail("E8")
def test_missing_eos_replaces_or_subtracts():
    scores = torch.tensor([2.0, 3.0, -50.0])
    has_eos = torch.tensor([True, False, False])
    # Detail E8: the raw score is irrelevant where the EOS is missing.
    assert missing_eos(scores, has_eos, penalty=1.0).tolist() == [2.0, -1.0, -1.0]
    subtracted = missing_eos(scores, has_eos, penalty=1.0, mode="subtract")
    assert subtracted.tolist() == [2.0, 2.0, -51.0]


def test_unknown_choices():
    with pytest.raises(ValueError, match="after_eos"):
        token_rewards(
            torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2).bool(), kl_coef=0, score_step="x"
        )
    with pytest.raises(ValueError, match="subtract"):
        missing_eos(torch.zeros(1), torch.ones(1).bool(), penalty=1.0, mode="add")

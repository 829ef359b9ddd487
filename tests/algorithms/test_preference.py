"""DPO against its definition written out with plain numbers (Detail D9)."""

import math

import pytest
import torch

from nplus.algorithms import preference
from nplus.config import DPOConfig
from nplus.data.collate import PairRow, pair_batch
from nplus.models.lm import sequence_logprobs

PAD, EOS = 1, 0
ROWS = [
    PairRow([5, 9, 33], [7, 8, EOS], [9, EOS]),
    PairRow([4, 6], [11, EOS], [12, 13, 14, EOS]),
]


def stacked(batch):
    masks = torch.cat([batch.chosen_response_mask_NT, batch.rejected_response_mask_NT])
    return (*batch.stacked(), masks)


def by_hand(model, query, response):
    """Sum of log-softmax at each response token, one forward of one unpadded row."""
    ids = torch.tensor([[*query, *response]])
    logps = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(logps[len(query) + i - 1, token]) for i, token in enumerate(response))


@pytest.mark.detail("A10", "D9")
@torch.no_grad()
def test_log_probs_are_summed_over_the_response_and_its_eos(tiny_causal):
    model = tiny_causal()
    found = sequence_logprobs(model, *stacked(pair_batch(ROWS, pad_id=PAD))).tolist()
    expected = [by_hand(model, row.query, row.chosen) for row in ROWS]
    expected += [by_hand(model, row.query, row.rejected) for row in ROWS]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.detail("D9")
def test_at_the_start_the_loss_is_ln_2_and_no_pair_is_right(tiny_causal):
    # Strict accuracy: equal policies give equal implicit rewards.
    model, batch = tiny_causal(), pair_batch(ROWS, pad_id=PAD)
    logprobs_2N = sequence_logprobs(model, *stacked(batch))
    found = preference.objective(logprobs_2N, logprobs_2N.detach(), batch, DPOConfig())
    _, loss = found.terms["train"]
    assert float(loss.sum.detach()) / loss.count == pytest.approx(math.log(2), abs=1e-6)
    assert found.metrics["rewards/accuracies"].value == 0.0
    assert preference.counts(batch, DPOConfig()) == {"train": 2.0}


@pytest.mark.detail("D9")
def test_the_query_contributes_nothing_but_context(tiny_causal):
    # The gradient of the loss reaches no state that predicts a query token.
    model, batch = tiny_causal(), pair_batch(ROWS, pad_id=PAD)
    seen = {}

    def watch(module, args, output):
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.retain_grad()
            seen["states"] = output.last_hidden_state

    keep = model.base_model.register_forward_hook(watch)
    logprobs_2N = sequence_logprobs(model, *stacked(batch))
    keep.remove()
    _, loss = preference.objective(logprobs_2N, logprobs_2N.detach(), batch, DPOConfig()).terms[
        "train"
    ]
    loss.sum.backward()
    moved = seen["states"].grad.abs().sum(-1) > 0
    for row, pair in enumerate([*ROWS, *ROWS]):
        response = pair.chosen if row < len(ROWS) else pair.rejected
        start = len(pair.query) - 1
        expected = torch.zeros_like(moved[row])
        expected[start : start + len(response)] = True
        assert torch.equal(moved[row], expected)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        # h = 3: spec's literals, then conservative and robust mixtures written out.
        ({"beta": 0.05}, 0.620957),
        ({"beta": 0.05, "loss_type": "ipo"}, 49.0),
        ({"beta": 0.05, "loss_type": "hinge"}, 0.85),
        ({"beta": 0.05, "label_smoothing": 0.1}, 0.9 * 0.620957 + 0.1 * 0.770957),
        (
            {"beta": 0.05, "loss_type": "robust", "label_smoothing": 0.1},
            (0.9 * 0.620957 - 0.1 * 0.770957) / 0.8,
        ),
    ],
)
@pytest.mark.detail("D9")
def test_losses_by_name(settings, loss):
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    policy, reference = torch.tensor([-20.0, -22.0]), torch.tensor([-25.0, -24.0])
    _, found = preference.objective(policy, reference, batch, DPOConfig(**settings)).terms["train"]
    assert found.value == pytest.approx(loss, abs=2e-6)


def test_ipo_of_averaged_log_probs():
    # Three and two response tokens: h = (-20/3 + 22/2) - (-25/3 + 24/2) = 2/3.
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    cfg = DPOConfig(beta=0.05, loss_type="ipo", ipo_length="mean")
    policy, reference = torch.tensor([-20.0, -22.0]), torch.tensor([-25.0, -24.0])
    _, found = preference.objective(policy, reference, batch, cfg).terms["train"]
    assert found.value == pytest.approx((2 / 3 - 10) ** 2, rel=1e-5)

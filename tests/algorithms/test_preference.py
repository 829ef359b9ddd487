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


# --- modifiers and more terms, from log-probs to terms --------------------------------------------

POLICY, REFERENCE = torch.tensor([-20.0, -22.0]), torch.tensor([-25.0, -24.0])


def terms(batch, policy=POLICY, reference=REFERENCE, shared=None, **settings):
    """`name -> (weight, mean)`: of the first row of ROWS the gains are 5 and 2, so h = 3."""
    cfg = DPOConfig(**{"beta": 0.05, **settings})
    reference = reference if cfg.has_reference else None
    found = preference.objective(policy, reference, batch, cfg, shared or {})
    assert {name: mean.count for name, (_, mean) in found.terms.items()} == preference.counts(
        batch, cfg
    )
    return {name: (weight, mean.value) for name, (weight, mean) in found.terms.items()}


def test_modifiers_of_the_log_ratio():
    batch = pair_batch(ROWS[:1], pad_id=PAD)  # three and two response tokens
    ln = math.log
    changed = {
        "f_divergence": ({"f_divergence": "js"}, ln(sigma(5.0)) - ln(sigma(2.0))),
        "alpha": (
            {"f_divergence": "alpha", "f_alpha": 0.5},
            (math.exp(-0.5 * 2) - math.exp(-0.5 * 5)) / 0.5,
        ),
        "rdpo": ({"rdpo_alpha": 0.1}, 3 + (0.1 / 0.05) * (3 - 2)),
        "dpop": ({"dpop_lambda": 5.0}, 3.0),
    }
    for settings, h in changed.values():
        expected = -ln(sigma(0.05 * h))
        assert terms(batch, **settings)["train"][1] == pytest.approx(expected, rel=1e-5)
    # The chosen response lost 5 nats: h = -5 - 2 - 4 * 5.
    lost = terms(batch, policy=torch.tensor([-30.0, -22.0]), dpop_lambda=4.0)["train"][1]
    assert lost == pytest.approx(-ln(sigma(0.05 * -27)), rel=1e-5)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_the_length_term_counts_real_tokens_and_never_padding():
    # Published code takes the padded widths of a batch, and with the opposite sign.
    narrow = pair_batch(ROWS[:1], pad_id=PAD)
    wide = pair_batch(ROWS[:1], pad_id=PAD, multiple=64)
    assert terms(narrow, rdpo_alpha=0.1) == terms(wide, rdpo_alpha=0.1)
    longer, shorter = (
        pair_batch([PairRow([5], [7] * n + [EOS], [7] * m + [EOS])], pad_id=PAD)
        for n, m in ((9, 1), (1, 9))
    )
    same = torch.tensor([-20.0, -20.0])
    losses = [
        terms(batch, policy=same, reference=same, rdpo_alpha=0.1)["train"][1]
        for batch in (longer, shorter)
    ]
    # 8 tokens at 0.1 each: the longer chosen response has that much margin already.
    expected = [-math.log(sigma(0.8)), -math.log(sigma(-0.8))]
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # Chosen responses of 3 and 2 tokens at -20 and -6.
        ("response", (20 / 3 + 6 / 2) / 2),
        ("token", 26 / 5),
        ("sum", 13.0),
    ],
)
def test_the_likelihood_of_chosen_responses(norm, expected):
    batch = pair_batch(ROWS, pad_id=PAD)
    policy, reference = torch.tensor([-20.0, -6.0, -22.0, -8.0]), torch.full((4,), -9.0)
    found = terms(batch, policy, reference, rpo_alpha=0.7, rpo_nll=norm)
    assert found["nll"] == (0.7, pytest.approx(expected))
    plain = terms(batch, policy, reference)
    assert set(plain) == {"train"}
    assert found["train"] == plain["train"]


def test_orpo_and_cpo_have_a_likelihood_of_their_own():
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    for kind in ("orpo", "cpo"):
        assert terms(batch, loss_type=kind)["nll"] == (1.0, pytest.approx(20 / 3))
        assert set(terms(batch, loss_type=kind, rpo_alpha=0.0)) == {"train"}


def test_optimism_lowers_what_the_designated_policy_wrote():
    rows = [
        ROWS[0]._replace(designated=(False, True)),
        ROWS[1]._replace(designated=(True, False)),
        ROWS[1],
    ]
    batch = pair_batch(rows, pad_id=PAD)
    policy = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0], requires_grad=True)
    cfg = DPOConfig(xpo_alpha=0.3)
    weight, mean = preference.objective(policy, torch.zeros(6), batch, cfg).terms["optimism"]
    assert (weight, mean.count) == (0.3, 2.0)
    assert mean.sum.item() == pytest.approx(-8.0 - 2.0)
    mean.sum.backward()
    assert policy.grad.tolist() == [0, 1, 0, 1, 0, 0]
    assert preference.counts(batch, cfg)["optimism"] == 2.0


def test_soft_labels_read_the_margin():
    # A margin that is computed and then read by nothing is a trap of published code.
    def loss(margin, **settings):
        batch = pair_batch([ROWS[0]._replace(margin=margin)], pad_id=PAD)
        return terms(batch, loss_type="soft_tv", **settings)["train"][1]

    assert loss(0.0) == pytest.approx(sigma(0.15) - 0.5, rel=1e-4)
    assert loss(2.0) == pytest.approx(sigma(2.0) - sigma(0.15), rel=1e-5)
    assert loss(1.0, margin_scale=2.0) == pytest.approx(loss(2.0))


@pytest.mark.parametrize("kind", ["simpo", "orpo", "cpo", "raft"])
def test_without_a_reference_rewards_are_the_policys_own(kind):
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    cfg = DPOConfig(loss_type=kind, beta=0.5)
    found = preference.objective(POLICY, None, batch, cfg).metrics
    lengths = (3, 2) if kind in ("simpo", "orpo") else (1, 1)
    expected = [0.5 * -20.0 / lengths[0], 0.5 * -22.0 / lengths[1]]
    told = [found[f"rewards/{name}"].value for name in ("chosen", "rejected")]
    assert told == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["bco_pair", "kto"])
def test_the_level_is_told(kind):
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    cfg = DPOConfig(loss_type=kind)
    shared = {"level": torch.tensor([0.25])}
    found = preference.objective(POLICY, REFERENCE, batch, cfg, shared)
    assert found.metrics["rewards/level"].value == 0.25


def test_ktos_weights_reach_the_loss():
    batch = pair_batch(ROWS[:1], pad_id=PAD)
    shared = {"level": torch.zeros(1)}

    def loss(**weights):
        cfg = DPOConfig(loss_type="kto", **weights)
        return float(
            preference.objective(POLICY, REFERENCE, batch, cfg, shared).terms["train"][1].sum
        )

    plain, wanted, unwanted = loss(), loss(desirable_weight=2.0), loss(undesirable_weight=3.0)
    # The losses of the two responses, and their sum.
    assert (wanted - plain) + (unwanted - plain) / 2 == pytest.approx(plain)
    assert wanted != unwanted


def test_the_running_mean_counts_every_reward_once():
    mean = preference.RunningMean()
    assert mean.with_(6.0, 4.0) == 1.5
    mean.observe(6.0, 4.0)
    assert mean.with_(2.0, 4.0) == 1.0
    again = preference.RunningMean()
    again.load_state_dict(mean.state_dict())
    assert again.with_(0.0, 0.0) == 1.5

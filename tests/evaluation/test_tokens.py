"""The token view: ranks against sorting, the three classes, and what does not count."""

import numpy as np
import pytest
import torch

from nplus.evaluation.tokens import base_ranks, describe_ranks, kind, kind_shares


def ranks_by_row(ranks_BR):
    """The counted ranks of each response, in order."""
    return [[rank for rank in row if rank] for row in ranks_BR.tolist()]


def everywhere(logits):
    return torch.ones(logits.shape[:2], dtype=torch.bool)


@pytest.mark.detail("H5")
def test_equal_models_leave_everything_unchanged():
    logits = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 1.0  # all tied
    ranks = base_ranks(logits, logits.clone(), everywhere(logits))
    assert set(ranks.flatten().tolist()) == {1}
    shares = kind_shares(ranks_by_row(ranks), top=4)
    assert shares["unchanged"]["rate"] == 1.0
    assert shares["shifted"]["rate"] == 0.0


@pytest.mark.detail("H5")
def test_known_ranks_by_hand():
    base = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]] * 6])
    tuned = torch.eye(6)[None]  # first choice 0, 1, ... 5
    ranks = base_ranks(tuned, base, everywhere(base)).tolist()
    assert ranks == [[1, 2, 3, 4, 5, 6]]
    classes = [kind(rank, 4) for rank in ranks[0]]
    assert classes == ["unchanged", "marginal", "marginal", "shifted", "shifted", "shifted"]


def test_ranks_are_places_in_the_sorted_base():
    generator = torch.Generator().manual_seed(1)
    tuned, base = (torch.randn(4, 9, 30, generator=generator) for _ in range(2))
    ranks = base_ranks(tuned, base, everywhere(base))
    order = base.argsort(-1, descending=True).numpy()
    for b, r in np.ndindex(4, 9):
        assert ranks[b, r] == list(order[b, r]).index(int(tuned[b, r].argmax())) + 1


@pytest.mark.detail("H5")
def test_what_stands_after_eos_or_in_padding_never_counts():
    generator = torch.Generator().manual_seed(2)
    tuned, base = (torch.randn(3, 5, 20, generator=generator) for _ in range(2))
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    ranks = base_ranks(tuned, base, mask)
    assert (ranks > 0).equal(mask)
    other = base.clone()
    other[~mask] = torch.nan
    assert base_ranks(tuned, other, mask).equal(ranks)
    found = describe_ranks(ranks_by_row(ranks), top=4)
    assert (found["responses"], found["tokens"]) == (3, 8)
    assert sum(found[name]["rate"] for name in ("unchanged", "marginal", "shifted")) == 1.0
    assert found["mean_rank"] == pytest.approx(ranks[mask].float().mean().item())


@pytest.mark.parametrize(
    ("top", "expected"),
    [(2, "uss"), (3, "ums"), (4, "umm"), (5, "umm")],
)
def test_the_classes_of_ranks_one_to_three(top, expected):
    assert "".join(kind(rank, top)[0] for rank in (1, 2, 3)) == expected


def test_ranks_begin_at_one():
    with pytest.raises(ValueError, match="begin at 1"):
        kind(0, 4)


def test_shares_without_tokens_are_absent():
    assert kind_shares([], 4) == {}
    assert describe_ranks([[]], 4)["tokens"] == 0


def test_alike_tokens_of_a_response_widen_the_interval():
    rng = np.random.default_rng(0)
    spread = [[1] * 10 if rng.random() < 0.5 else [9] * 10 for _ in range(40)]
    mixed = [[1 if rng.random() < 0.5 else 9 for _ in range(10)] for _ in range(40)]
    widths = []
    for rows in (spread, mixed):
        share = kind_shares(rows, 4)["unchanged"]
        assert share["low"] < share["rate"] < share["high"]
        widths.append(share["high"] - share["low"])
    # Ten equal tokens tell as much as one: sqrt(10) wider than ten apart.
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.2)


def test_the_interval_of_shares_covers_at_its_level():
    """Responses of their own mind and length: the share of unchanged tokens of the population."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        rates = rng.beta(4, 2, 30)
        rows = [[1 if rng.random() < p else 9 for _ in range(rng.integers(5, 30))] for p in rates]
        share = kind_shares(rows, 4)["unchanged"]
        hits += share["low"] <= 4 / 6 <= share["high"]
    assert hits / 400 == pytest.approx(0.95, abs=0.035)

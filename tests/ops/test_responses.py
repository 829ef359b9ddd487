import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nplus.ops.responses import (
    contains_eos,
    first_true_index,
    last_index_B,
    response_mask_BR,
    truncate_after,
    value_mask_BR,
)

EOS, PAD = 0, 9
# (tokens, s): EOS at 0, in the middle, in the last slot, twice, absent.
CASES = [
    ([0, 3, 4, 5], 0),
    ([3, 4, 0, 5], 2),
    ([3, 4, 5, 0], 3),
    ([3, 0, 5, 0], 1),
    ([3, 4, 5, 6], 3),
    ([0, 0, 0, 0], 0),
]


@pytest.mark.detail("F1")
@pytest.mark.parametrize(("tokens", "last"), CASES)
def test_masks_around_the_end(tokens, last):
    tokens_BR = torch.tensor([tokens])
    mask = response_mask_BR(tokens_BR, EOS)
    assert mask.tolist() == [[j <= last for j in range(4)]]
    assert last_index_B(mask).tolist() == [last]
    # Detail F1: one more step for values, cut at the end of the array.
    assert value_mask_BR(mask).tolist() == [[j <= last + 1 for j in range(4)]]
    assert contains_eos(tokens_BR, EOS).tolist() == [0 in tokens]


def test_width_one():
    mask = response_mask_BR(torch.tensor([[EOS], [5]]), EOS)
    assert mask.tolist() == [[True], [True]]
    assert value_mask_BR(mask).tolist() == [[True], [True]]


def test_a_row_without_real_tokens_stays_empty():
    empty = torch.zeros(1, 3, dtype=torch.bool)
    assert not value_mask_BR(empty).any()
    assert last_index_B(empty).tolist() == [-1]


responses = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(responses)
def test_truncation_against_list_slicing(tokens):
    kept = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    expected = kept + [PAD] * (len(tokens) - len(kept))
    tokens_BR = torch.tensor([tokens])
    truncated = truncate_after(tokens_BR, EOS, PAD)
    assert truncated.tolist() == [expected]
    assert tokens_BR.tolist() == [tokens]
    assert truncate_after(truncated, EOS, PAD).equal(truncated)
    assert response_mask_BR(truncated, EOS).sum().item() == len(kept)


@given(st.lists(st.booleans(), max_size=8))
def test_first_true_index_against_list_index(flags):
    expected = flags.index(True) if any(flags) else len(flags)
    assert first_true_index(torch.tensor([flags], dtype=torch.bool)).tolist() == [expected]

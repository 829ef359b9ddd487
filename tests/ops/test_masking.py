import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nplus.ops.masking import (
    Moments,
    masked_mean,
    masked_moments,
    masked_sum,
    masked_var,
    whiten,
)


@st.composite
def masked_tables(draw, minimum=1):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    cells = rows * columns
    numbers = draw(st.lists(st.floats(-1e3, 1e3), min_size=cells, max_size=cells))
    chosen = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    for position in range(min(minimum, cells)):
        chosen[position] = True
    values = torch.tensor(numbers, dtype=torch.float64).view(rows, columns)
    return values, torch.tensor(chosen).view(rows, columns)


def poisoned(values, mask):
    return values.masked_fill(~mask, math.nan)


@settings(max_examples=60, deadline=None)
@given(masked_tables())
def test_statistics_are_those_of_the_selected_entries(case):
    values, mask = case
    selected = values.numpy()[mask.numpy()]
    dirty = poisoned(values, mask)
    assert masked_sum(dirty, mask).item() == pytest.approx(selected.sum(), abs=1e-9)
    assert masked_mean(dirty, mask).item() == pytest.approx(selected.mean(), abs=1e-9)
    biased = masked_var(dirty, mask, unbiased=False).item()
    assert biased == pytest.approx(np.var(selected), rel=1e-9, abs=1e-8)
    if selected.size > 1:
        unbiased = masked_var(dirty, mask, unbiased=True).item()
        assert unbiased == pytest.approx(np.var(selected, ddof=1), rel=1e-9, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(masked_tables(minimum=2), st.booleans(), st.booleans())
def test_whiten_against_numpy_on_the_selected_entries(case, unbiased, shift_mean):
    values, mask = case
    selected = values.numpy()[mask.numpy()]
    white = whiten(
        poisoned(values, mask),
        mask,
        masked_moments(values, mask),
        unbiased=unbiased,
        shift_mean=shift_mean,
    )
    expected = (selected - selected.mean()) / np.sqrt(
        selected.var(ddof=int(unbiased and selected.size > 1)) + 1e-8
    )
    expected = expected + (0.0 if shift_mean else selected.mean())
    np.testing.assert_allclose(white.numpy()[mask.numpy()], expected, rtol=1e-5, atol=2e-4)
    assert (white[~mask] == 0.0).all()


@pytest.mark.detail("F7")
def test_whitened_values_have_masked_mean_0_and_biased_variance_1():
    # Detail F7, with pads that would shift both if they were counted.
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 9, generator=generator) * 3 + 5
    mask = torch.arange(9) < torch.randint(1, 10, (16, 1), generator=generator)
    white = whiten(values, mask, masked_moments(values, mask)).numpy()[mask.numpy()]
    assert white.dtype == np.float32
    assert white.mean() == pytest.approx(0.0, abs=1e-6)
    assert white.var() == pytest.approx(1.0, abs=1e-6)


def test_moments_add_up_over_parts():
    generator = torch.Generator().manual_seed(1)
    values, mask = (
        torch.randn(12, 7, generator=generator),
        torch.rand(12, 7, generator=generator) > 0.4,
    )
    parts = [masked_moments(values[i : i + 3], mask[i : i + 3]) for i in range(0, 12, 3)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    reduced = Moments(*torch.stack([torch.stack(p) for p in parts]).sum(0).unbind())
    whole = masked_moments(values, mask)
    for mine, other, expected in zip(total, reduced, whole, strict=True):
        torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(other, expected)


def test_variance_survives_a_large_mean_in_float32():
    values = torch.tensor([[4096.0, 4096.25, 4096.5, 4096.75]])
    mask = torch.ones_like(values, dtype=torch.bool)
    assert masked_var(values, mask, unbiased=False).item() == pytest.approx(0.078125, rel=1e-6)


def test_nan_in_masked_slots_reaches_no_gradient():
    values = torch.tensor([[1.0, math.nan, 3.0]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, False, True]])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.0, 0.5]]


def test_nothing_selected():
    values, none = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_sum(values, none).item() == 0.0
    assert masked_mean(values, none).isnan()
    assert whiten(values, none, masked_moments(values, none)).tolist() == [[0.0] * 3] * 2


def test_per_row_mean():
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask, dim=-1).tolist() == [1.5, 4.0]


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool), torch.ones(2, 3).long()]
)
def test_a_mask_is_bool_and_fits(mask):
    with pytest.raises(ValueError, match="mask"):
        masked_mean(torch.ones(2, 3), mask)

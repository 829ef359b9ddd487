import math

import pytest
import torch

from nplus.metrics import Max, Mean, Sum, merge, reduce, values


def test_mean_over_micro_batches_is_the_mean_over_everything():
    x = torch.tensor([1.0, 2.0, 3.0, 40.0, 5.0])
    mask = torch.tensor([True, True, False, True, True])
    parts = [Mean.of(x[:1], mask[:1]), Mean.of(x[1:3], mask[1:3]), Mean.of(x[3:], mask[3:])]
    assert (parts[0] + parts[1] + parts[2]).value == 12.0  # (1 + 2 + 40 + 5) / 4
    assert sum(part.value for part in parts) / 3 != 12.0


def test_nothing_counted_is_nan_and_adds_nothing():
    nothing = Mean.of(torch.tensor([math.nan]), torch.tensor([False]))
    assert math.isnan(nothing.value)
    assert (nothing + Mean(3.0, 2)).value == 1.5


def test_numbers_and_tensors_mix():
    assert (Mean(1.0, 1) + Mean(torch.tensor(5.0), torch.tensor(2))).value == 2.0
    assert (Sum(1) + Sum(torch.tensor(2))).value == 3.0
    assert (Max(1.0) + Max(torch.tensor(0.5))).value == 1.0


def test_metrics_carry_no_gradient():
    assert not Mean.of(torch.ones(2, requires_grad=True)).sum.requires_grad


def test_small_terms_survive_many_additions():
    part = Mean.of(torch.full((1,), 0.1))
    total = merge([{"x": part}] * 5000)["x"]
    assert total.value == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_merge_adds_by_name():
    merged = merge([{"a": Mean(1, 1), "n": Sum(2)}, {"a": Mean(4, 1)}, {"m": Max(3)}])
    assert values(merged) == {"a": 2.5, "n": 2.0, "m": 3.0}
    with pytest.raises(TypeError, match="Mean meets Sum"):
        merge([{"a": Mean(1, 1)}, {"a": Sum(1)}])


def test_reduce_over_two_ranks():
    ranks = [
        {"z": Mean(10.0, 1), "a": Sum(1), "peak": Max(-2.0)},
        {"peak": Max(-5.0), "a": Sum(torch.tensor(2)), "z": Mean(torch.tensor(2.0), 3)},
    ]
    sent: dict[str, list[torch.Tensor]] = {"sum": [], "max": []}

    def record(kind):
        return lambda x: sent[kind].append(x) or x

    for rank in ranks:
        reduce(rank, record("sum"), record("max"))
    # Both ranks lay their numbers out alike, whatever the order of their names.
    totals, peaks = torch.stack(sent["sum"]).sum(0), torch.stack(sent["max"]).amax(0)
    for rank in ranks:
        reduced = reduce(rank, lambda _: totals, lambda _: peaks)
        assert values(reduced) == {"a": 3.0, "z": 3.0, "peak": -2.0}
        assert list(reduced) == list(rank)


def test_reduce_asks_for_one_reduction_and_none_for_nothing():
    calls = []
    reduce({"a": Mean(1, 1), "b": Mean(2, 1), "n": Sum(1)}, lambda x: calls.append(x) or x)
    assert [tuple(x.shape) for x in calls] == [(5,)]
    assert calls[0].dtype == torch.float64
    assert reduce({}, lambda x: calls.append(x) or x) == {}
    assert len(calls) == 1


def test_reduce_refuses_a_max_without_a_way_to_reduce_it():
    with pytest.raises(ValueError, match="collectives_max"):
        reduce({"peak": Max(1.0)}, lambda x: x)

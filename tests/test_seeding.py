import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nplus.seeding
from nplus.seeding import epoch_order, stream, take, take_grouped, uniform_grid, uniforms

parts = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=6))
paths = st.lists(parts, max_size=4).map(tuple)


def test_the_numbers_themselves_are_pinned():
    # A change here changes every run: it needs a reason.
    assert uniforms(1, "x", n=2).tolist() == pytest.approx([0.99415576, 0.20505104], abs=1e-8)
    assert epoch_order(1, "a", 0, 6).tolist() == [3, 5, 4, 1, 0, 2]


def test_another_process_draws_the_same():
    code = "from nplus.seeding import uniforms; print(uniforms(7, 'rollout', 3, n=3).tolist())"
    env = {**os.environ, "PYTHONPATH": str(Path(nplus.seeding.__file__).parents[1])}
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert seen.stdout.strip() == str(uniforms(7, "rollout", 3, n=3).tolist())


@settings(deadline=None)
@given(paths, paths)
def test_different_paths_are_different_streams(one, other):
    same = uniforms(0, *one, n=2).tolist() == uniforms(0, *other, n=2).tolist()
    assert same == ([(type(x), x) for x in one] == [(type(x), x) for x in other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1",), (1,)),
        (("ab", "c"), ("a", "bc")),
        (("a",), ("a", "")),
        ((12, 3), (1, 23)),
        (("i1",), (1,)),
        ((), ("",)),
        ((1,), (-1,)),
    ],
)
def test_lookalike_paths_do_not_collide(one, other):
    assert stream(0, *one).random() != stream(0, *other).random()


def test_seed_and_path_do_not_run_together():
    assert stream(1, 2).random() != stream(12).random()
    assert stream(1).random() != stream(2).random()


def test_numpy_integers_are_integers():
    assert stream(np.int64(3), "x", np.int32(4)).random() == stream(3, "x", 4).random()


@pytest.mark.parametrize("part", [1.0, None, True, b"x", ("a",)])
def test_other_types_are_refused(part):
    with pytest.raises(TypeError, match="str and int"):
        stream(0, part)


def test_uniforms_look_uniform_and_stay_inside():
    draws = uniforms(0, "u", n=20_000)
    assert draws.dtype == np.float64
    assert 0.0 < draws.min() < draws.max() < 1.0
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-squared, 19 degrees: p about 7e-4


def test_extreme_bits_stay_inside():
    from nplus.seeding import _open_unit

    ends = _open_unit(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0.0 < ends[0] < 1e-15
    assert 1.0 - 1e-15 < ends[1] < 1.0


@pytest.mark.detail("B5")
def test_grid_rows_depend_on_their_own_key_alone():
    keys = [("p", i, sample) for i in range(3) for sample in range(2)]
    grid = uniform_grid(5, keys, 8)
    assert grid.shape == (6, 8)
    assert len(np.unique(grid)) == grid.size
    np.testing.assert_array_equal(uniform_grid(5, keys[::-1], 8), grid[::-1])
    np.testing.assert_array_equal(uniform_grid(5, keys[2:3], 3), grid[2:3, :3])
    np.testing.assert_array_equal(uniform_grid(5, keys, 200)[:, :8], grid)
    np.testing.assert_array_equal(uniforms(5, *keys[4], n=8), grid[4])
    assert uniform_grid(5, [], 8).shape == (0, 8)


@pytest.mark.detail("B5", "E2")
def test_every_pass_holds_every_item_once_in_its_own_order():
    # Detail E2.
    passes = take(3, "prompts", 50, 0, 200).reshape(4, 50)
    for order in passes:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order) for order in passes.tolist()}) == 4
    assert passes[2].tolist() == epoch_order(3, "prompts", 2, 50).tolist()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 60), st.lists(st.integers(0, 25), max_size=5))
def test_taking_piece_by_piece_is_taking_at_once(n, start, counts):
    whole = take(9, "x", n, start, sum(counts)).tolist()
    pieces, cursor = [], start
    for count in counts:
        pieces += take(9, "x", n, cursor, count).tolist()
        cursor += count
    assert pieces == whole
    assert len(whole) == sum(counts)


def test_names_and_seeds_order_differently():
    orders = {tuple(epoch_order(s, name, 0, 40)) for s in (0, 1) for name in ("a", "b")}
    assert len(orders) == 4


def test_first_places_are_uniform():
    first = [epoch_order(0, "u", epoch, 5)[0] for epoch in range(2000)]
    assert np.bincount(first, minlength=5).min() > 330


@pytest.mark.parametrize("arguments", [(0, 0, 1), (4, -1, 1), (4, 0, -1)])
def test_impossible_requests(arguments):
    with pytest.raises(ValueError, match=r"not negative|cannot draw"):
        take(0, "x", *arguments)


def test_take_grouped_keeps_groups_together_and_takes_every_item_once():
    groups = [[0, 3, 5], [1], [2, 4]]
    whole = take_grouped(1, "x", groups, 0, 18).tolist()
    for start in range(0, 18, 6):
        one_pass = whole[start : start + 6]
        assert sorted(one_pass) == list(range(6))
        for group in groups:
            at = one_pass.index(group[0])
            assert one_pass[at : at + len(group)] == group
    assert len({tuple(whole[start : start + 6]) for start in range(0, 18, 6)}) > 1
    # The cursor is all the state there is.
    assert take_grouped(1, "x", groups, 4, 5).tolist() == whole[4:9]
    alone = take_grouped(1, "x", [[n] for n in range(6)], 3, 10).tolist()
    assert alone == take(1, "x", 6, 3, 10).tolist()
    with pytest.raises(ValueError, match="cannot draw"):
        take_grouped(1, "x", [], 0, 1)

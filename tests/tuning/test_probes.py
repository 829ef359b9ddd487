"""What each probe makes of its times: the times are given, so nothing hangs on this machine."""

import pytest
import torch

from nplus.config.tuning import attention_under
from nplus.stages.tuning import allocator, probes
from nplus.stages.tuning.allocator import measure_allocator
from nplus.stages.tuning.probes import (
    Bench,
    measure_attention,
    measure_autocast,
    measure_precision,
    measure_rows,
    measure_threads,
)
from nplus.stages.tuning.turns import Pace
from nplus.stages.tuning.work import Load, Loads, Net, rectangle, training

SMALL = Net(width=16, layers=1, heads=2, groups=2, inner=32, vocab=64)
WIDER = Net(width=32, layers=1, heads=4, groups=2, inner=32, vocab=64)
LOADS = Loads(Load(SMALL, 4, 8, 4), Load(SMALL, 2, 16, 4), Load(WIDER, 2, 16, 4))


@pytest.fixture
def bench(monkeypatch):
    """`bench(seconds)`: nothing is timed; `seconds(work, way)` says what a way takes."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def build(seconds, **options):
        made = Bench(torch.device("cpu"), LOADS, pace=Pace(1, 1, 0.0), **options)
        works = []
        made.on_work = works.append
        for module in (probes, allocator):
            monkeypatch.setattr(
                module,
                "in_turns",
                lambda ways, pace: {way: [seconds(works[-1], way)] * 3 for way in ways},
            )
        return made

    yield build
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def chosen(bench):
    return {(c.key, c.under): c.value for c in bench.choices}


def narrow_medium(monkeypatch, digits):
    """Products under `medium` rounded to `digits`, as on a processor that has them."""
    plain = probes.all_products

    def rounded(pairs):
        found = plain(pairs)
        if torch.get_float32_matmul_precision() == "medium":
            found = [x.to(digits).float() for x in found]
        return found

    monkeypatch.setattr(probes, "all_products", rounded)


def faster_medium(work, way):
    return 0.4 if way == "medium" else 1.0


def test_medium_is_refused_where_it_means_fewer_digits(bench, monkeypatch):
    narrow_medium(monkeypatch, torch.bfloat16)
    made = bench(faster_medium)
    measure_precision(made)
    [choice] = made.choices
    assert (choice.value, made.precision) == ("highest", "highest")
    assert "refused: medium errs" in choice.why
    assert made.errors["medium"] > 1e-3 > made.errors["highest"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_medium_is_taken_where_it_errs_alike(bench, monkeypatch):
    narrow_medium(monkeypatch, torch.float64)
    plain = probes.all_products  # another order of sums: other last digits

    def reordered(pairs):
        if torch.get_float32_matmul_precision() == "medium":
            pairs = [(x.flip(1), y.flip(0)) if x.dim() == 2 else (x, y) for x, y in pairs]
        return plain(pairs)

    monkeypatch.setattr(probes, "all_products", reordered)
    made = bench(faster_medium)
    measure_precision(made)
    assert (made.choices[0].value, made.precision) == ("medium", "medium")
    assert torch.get_float32_matmul_precision() == "medium"


def test_settings_that_give_the_same_numbers_are_one(bench, monkeypatch):
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    made = bench(lambda work, way: 1.0)
    measure_precision(made)
    assert {tuple(a.name for a in m.alternatives) for m in made.measurements} == {("highest",)}
    assert made.choices[0].why == "nothing else to take"


@pytest.mark.parametrize(
    ("cores", "own", "seconds", "threads", "beside"),
    [
        # All threads are best for one network; two go side by side.
        (8, 8, lambda n, how: 8 / n if how != "side by side" else 7 / n, 8, True),
        # The network is too small to share: one thread.
        (8, 8, lambda n, how: float(n), 1, True),
        # Half the threads, as where two threads share a core, and one after the other.
        (8, 8, lambda n, how: {8: 5.0, 4: 2.0, 1: 4.0}[n] + (how == "side by side"), 4, False),
        # What torch takes stands for itself: fewer threads than cores.
        (4, 2, lambda n, how: {1: 4.0, 2: 2.0, 4: 1.99}[n], 2, True),
    ],
)
def test_threads_and_side_by_side(bench, cores, own, seconds, threads, beside):
    def told(work, way):
        count, _, how = way.partition(" ")
        return seconds(int(count), how)

    made = bench(told, cores=cores, own_threads=own)
    measure_threads(made)
    assert chosen(made) == {("compute.threads", ""): threads, ("compute.side_by_side", ""): beside}
    assert made.threads == torch.get_num_threads() == threads
    defaults = {c.key: c.default for c in made.choices}
    assert defaults == {"compute.threads": own, "compute.side_by_side": True}


def test_a_single_core_has_nothing_to_choose(bench):
    made = bench(lambda work, way: 1.0, cores=1, own_threads=1)
    measure_threads(made)
    assert chosen(made) == {("compute.threads", ""): 1, ("compute.side_by_side", ""): True}
    assert [c.why for c in made.choices] == [
        "nothing else to take",
        "one thread: there is no beside",
    ]


def test_attention_is_chosen_under_each_precision_and_autocast(bench):
    def seconds(work, way):
        if "medium" in work:  # sdpa is slow there
            return {"sdpa": 3.0, "eager": 2.0, "batched": 1.0}[way]
        if "bfloat16" in work:
            return {"sdpa": 1.0, "eager": 1.0, "batched": 0.5}[way]
        return {"sdpa": 1.0, "eager": 1.2, "batched": 1.1}[way]

    made = bench(seconds)
    made.precision = "medium"
    measure_attention(made)
    found = {under: value for (_, under), value in chosen(made).items()}
    assert found == {
        attention_under("highest", "none", known=True): "sdpa",
        attention_under("highest", "none", known=False): "sdpa",
        # Geometric mean of 0.5 three times and 1.1 three times: 0.74.
        attention_under("highest", "bfloat16", known=True): "batched",
        attention_under("highest", "bfloat16", known=False): "sdpa",
        attention_under("medium", "none", known=True): "batched",
        attention_under("medium", "none", known=False): "eager",
        attention_under("medium", "bfloat16", known=True): "batched",
        attention_under("medium", "bfloat16", known=False): "eager",
    }
    assert made.attention == "batched"
    assert len(made.measurements) == 3 + 2 * 6


def test_autocast_and_rows_are_advice(bench):
    def seconds(work, way):
        return {"bfloat16": 0.5, "32": 0.8, "4": 0.9}.get(way, 1.0)

    made = bench(seconds)
    measure_autocast(made)
    measure_rows(made)
    assert all(choice.advice for choice in made.choices)
    autocast, narrow, wide, rollouts = made.choices
    assert (autocast.key, autocast.value) == ("compute.autocast", "bfloat16")
    assert autocast.why.endswith("it changes results")
    assert (narrow.key, narrow.value, narrow.default) == ("ppo.micro_batch_size", 32, 16)
    assert "width 16" in narrow.under
    assert (wide.value, "width 32" in wide.under) == (4, True)
    assert (rollouts.key, rollouts.value) == ("ppo.rollout_micro_batch_size", 32)


def test_a_c_library_without_the_settings_is_told(bench, monkeypatch):
    monkeypatch.setattr(allocator, "glibc_mallopt", lambda: None)
    made = bench(None)
    measure_allocator(made)
    assert chosen(made) == {("compute.allocator", ""): "one_arena"}
    assert made.choices[0].why == "not glibc: nothing is set"


class Pool:
    """In place of a process."""

    def __init__(self, ends):
        self.ends = ends

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments):
        return self

    def result(self):
        if self.ends:
            raise allocator.BrokenProcessPool
        return 1.0


@pytest.mark.parametrize(
    ("ends", "gain", "value"),
    [(False, 0.5, "keep"), (False, 0.82, "one_arena"), (True, 0.5, "one_arena")],
)
def test_another_allocator_has_to_gain_more(bench, monkeypatch, ends, gain, value):
    monkeypatch.setattr(allocator, "glibc_mallopt", lambda: print)
    monkeypatch.setattr(allocator, "_process", lambda bench, name: Pool(ends))
    made = bench(lambda work, way: gain if way == "keep" else 1.0)
    measure_allocator(made)
    assert chosen(made) == {("compute.allocator", ""): value}
    assert made.choices[0].why.startswith("not measured") == ends


def test_training_leaves_no_gradient_and_sees_every_row():
    model = SMALL.build("batched", torch.device("cpu"))
    seen = []
    model.base_model.get_input_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(len(args[0])) if torch.is_grad_enabled() else None
    )
    load = LOADS.short
    training(model, load, micro=1)()
    assert seen == [1] * load.rows
    assert all(p.grad is None for p in model.parameters())


def test_a_rectangle_has_padded_rows():
    tokens, mask = rectangle(LOADS.short, torch.device("cpu"))
    assert tokens.shape == mask.shape == (4, 12)
    assert mask.sum(1).tolist() == [12, 10, 12, 10]


def test_weights_are_the_same_for_every_attention():
    one, other = (WIDER.build(kind, torch.device("cpu")) for kind in ("sdpa", "batched"))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert other.config._attn_implementation == "batched"

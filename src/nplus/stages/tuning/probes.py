"""The measurements of `nplus tune`, each choosing before the next is taken under its choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.config.load import default_of
from nplus.config.tuning import Alternative, Choice, Measurement, Value, attention_under
from nplus.distributed.partner import CAN_FORK, Partner
from nplus.stages.tuning.choose import choose, refused_precisions
from nplus.stages.tuning.turns import Pace, Times, clocked, compared, in_turns
from nplus.stages.tuning.work import (
    Load,
    Loads,
    Net,
    all_products,
    prefill,
    products,
    rollout,
    training,
    worst_error,
)

PRECISIONS = ("highest", "high", "medium")
ATTENTIONS = ("sdpa", "eager", "batched")
AUTOCASTS = ("none", "bfloat16")
ROWS_MARGIN = 0.05
"""Advice that changes from one measurement to the next is worse than none."""


@dataclass(slots=True)
class Bench:
    """What has been found so far, on one device, and what the rest is measured under."""

    device: torch.device
    loads: Loads
    pace: Pace = field(default_factory=Pace)
    on_work: Callable[[str], None] = lambda work: None
    """Told what is measured next."""
    own_threads: int = field(default_factory=torch.get_num_threads)
    """Torch's choice."""
    cores: int = 1
    precision: str = "highest"
    threads: int = 1
    attention: str = "sdpa"
    measurements: list[Measurement] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    _models: dict[tuple[Net, str], PreTrainedModel] = field(default_factory=dict)

    def time(
        self, key: str, work: str, ways: Mapping[str, Callable[[], object]], default: str
    ) -> Times:
        """The seconds of `ways`, in turns; they are kept as a measurement for `key`."""
        self.on_work(work)
        times = in_turns({name: clocked(way, self.device) for name, way in ways.items()}, self.pace)
        self.keep(key, work, times, default)
        return times

    def keep(self, key: str, work: str, times: Times, default: str) -> None:
        self.measurements.append(
            Measurement(key=key, work=work, alternatives=compared(times, default))
        )

    def choice(
        self,
        key: str,
        value: Value,
        default: Value,
        why: str,
        *,
        under: str = "",
        advice: bool = False,
    ) -> None:
        self.choices.append(
            Choice(key=key, value=value, default=default, why=why, under=under, advice=advice)
        )

    def model(self, net: Net, attention: str | None = None) -> PreTrainedModel:
        """The network with some attention, or the chosen one; made once."""
        which = (net, attention or self.attention)
        if which not in self._models:
            self._models[which] = which[0].build(which[1], self.device)
        return self._models[which]


def under_precision(name: str, way: Callable[[], object]) -> Callable[[], None]:
    """`way` with float32 products of precision `name`."""

    def run() -> None:
        torch.set_float32_matmul_precision(name)
        way()

    return run


def on_threads(count: int, way: Callable[[], object]) -> Callable[[], None]:
    """`way` on `count` threads."""

    def run() -> None:
        torch.set_num_threads(count)
        way()

    return run


def measure_precision(bench: Bench) -> None:
    """`compute.matmul_precision`: the fastest that errs like `highest`."""
    key, default = "compute.matmul_precision", PRECISIONS[0]
    pairs = [products(load, bench.device) for load in (bench.loads.short, bench.loads.wide)]
    flat = [pair for each in pairs for pair in each]
    exact = [left.double() @ right.double() for left, right in flat]
    found: dict[str, list[Tensor]] = {}
    for name in PRECISIONS:
        torch.set_float32_matmul_precision(name)
        results = all_products(flat)
        bench.errors[name] = worst_error(results, exact)
        same = (all(map(torch.equal, results, other)) for other in found.values())
        if not any(same):  # on some processors two settings are one
            found[name] = results
    cells = []
    for load, each in zip((bench.loads.short, bench.loads.wide), pairs, strict=True):
        works = {
            f"products of a layer, {load.name}": partial(all_products, each),
            f"training step, {load.name}": training(bench.model(load.net, "batched"), load),
        }
        for work, way in works.items():
            ways = {name: under_precision(name, way) for name in found}
            cells.append(compared(bench.time(key, work, ways, default), default))
    refused = refused_precisions(bench.errors)
    bench.precision, why = choose(cells, default, refused=refused)
    if refused:
        why += "; refused: " + ", ".join(f"{name} {reason}" for name, reason in refused.items())
    bench.choice(key, bench.precision, default, why)
    torch.set_float32_matmul_precision(bench.precision)


def measure_threads(bench: Bench) -> None:
    """`compute.threads` and `compute.side_by_side`, for one network and for two."""
    key, default = "compute.threads", str(bench.own_threads)
    cores = bench.cores
    counts = sorted({bench.own_threads, cores, max(1, cores // 2), 1}, reverse=True)
    counts.sort(key=lambda count: count != bench.own_threads)
    cells, pairs = [], []
    for load in (bench.loads.short, bench.loads.wide):
        each = products(load, bench.device)
        step = training(bench.model(load.net, "batched"), load)
        other = training(load.net.build("batched", bench.device), load)
        works = {f"products of a layer, {load.name}": partial(all_products, each)}
        works[f"training step, {load.name}"] = step
        for work, way in works.items():
            ways = {str(count): on_threads(count, way) for count in counts}
            cells.append(compared(bench.time(key, work, ways, default), default))
        two = {
            f"{count} {how}": on_threads(count, _two(step, other, beside=how == _BESIDE))
            for count in counts
            for how in (_BESIDE, _IN_TURN)
            if (count > 1 and CAN_FORK) or how == _IN_TURN
        }
        first = next(iter(two))
        pairs.append(bench.time("compute.side_by_side", f"two networks, {load.name}", two, first))
        cells.append(compared(_best_of(pairs[-1], counts), default))
    taken, why = choose(cells, default)
    bench.threads = int(taken)
    bench.choice(key, bench.threads, bench.own_threads, why)
    torch.set_num_threads(bench.threads)
    if bench.threads == 1 or not CAN_FORK:
        why = "one thread: there is no beside" if CAN_FORK else "only Linux forks safely"
        bench.choice("compute.side_by_side", True, True, why)
        return
    chosen = [{how: t[f"{taken} {how}"] for how in (_BESIDE, _IN_TURN)} for t in pairs]
    how, why = choose([compared(times, _BESIDE) for times in chosen], _BESIDE)
    bench.choice("compute.side_by_side", how == _BESIDE, True, why)


_BESIDE, _IN_TURN = "side by side", "in turn"


def _two(
    one: Callable[[], None], other: Callable[[], None], *, beside: bool
) -> Callable[[], object]:
    """Both, at the same time in a process each on half the threads, or one after the other on all
    of them."""
    partners: list[Partner] = []

    def in_two_processes() -> None:
        if not partners:
            partners.append(Partner({"other": other}))
        partners[0].beside(one, "other")

    def in_turn() -> None:
        one()
        other()

    return in_two_processes if beside else in_turn


def _best_of(times: Times, counts: list[int]) -> Times:
    """What two networks take on so many threads, the better way each round."""
    found: Times = {}
    for count in counts:
        ways = [seconds for name, seconds in times.items() if name.split()[0] == str(count)]
        found[str(count)] = [min(round_) for round_ in zip(*ways, strict=True)]
    return found


def measure_attention(bench: Bench) -> None:
    """`model.attn_implementation` under `highest` and the chosen precision, with and without
    autocast; without `batched` for architectures that it is not for."""
    key, default = "model.attn_implementation", ATTENTIONS[0]

    def cells_of(
        work: str, way: Callable[[PreTrainedModel, Load], Callable[[], None]]
    ) -> list[tuple[Alternative, ...]]:
        found = []
        for load in bench.loads.all:
            ways = {name: way(bench.model(load.net, name), load) for name in ATTENTIONS}
            times = bench.time(key, f"{work}, {load.name}", ways, default)
            found.append(compared(times, default))
        return found

    narrow = cells_of("bfloat16 training step", lambda m, x: training(m, x, autocast="bfloat16"))
    for precision in dict.fromkeys(("highest", bench.precision)):
        torch.set_float32_matmul_precision(precision)
        forward = cells_of(f"{precision} prefill", prefill)
        trained = {"none": cells_of(f"{precision} training step", training), "bfloat16": narrow}
        for autocast, cells in trained.items():
            for known in (True, False):
                among = ATTENTIONS if known else ("sdpa", "eager")
                taken, why = choose([*cells, *forward], default, among=among)
                under = attention_under(precision, autocast, known=known)
                bench.choice(key, taken, default, why, under=under)
                if (precision, autocast, known) == (bench.precision, "none", True):
                    bench.attention = taken
    torch.set_float32_matmul_precision(bench.precision)


def measure_autocast(bench: Bench) -> None:
    """`compute.autocast`: whether bfloat16 pays. It changes results, so this is advice."""
    key, cells = "compute.autocast", []
    for load in (bench.loads.short, bench.loads.wide):
        model = bench.model(load.net)
        ways = {name: training(model, load, autocast=name) for name in AUTOCASTS}
        cells.append(compared(bench.time(key, f"training step, {load.name}", ways, "none"), "none"))
    taken, why = choose(cells, "none")
    why += "; it changes results" if taken != "none" else ""
    bench.choice(key, taken, "none", why, advice=True)


def measure_rows(bench: Bench) -> None:
    """Rows of a training forward and of a rollout: advice, for they have to divide the batch."""
    for load, sizes in ((bench.loads.short, (16, 8, 32, 64)), (bench.loads.wide, (16, 8, 4))):
        many = Load(load.net, max(sizes), load.prompt, load.response)
        model, default = bench.model(load.net), str(default_of("ppo.micro_batch_size"))
        ways = {str(rows): training(model, many, micro=rows) for rows in sizes}
        _advise(bench, "ppo.micro_batch_size", f"training, {many.name}", ways, default)
    load = bench.loads.short
    many = Load(load.net, 128, load.prompt, load.response // 2)
    model, default = bench.model(load.net), str(default_of("ppo.rollout_micro_batch_size"))
    rolls = {str(rows): rollout(model, many, rows=rows) for rows in (64, 32, 128)}
    _advise(bench, "ppo.rollout_micro_batch_size", f"rollout, {many.name}", rolls, default)


def _advise(
    bench: Bench, key: str, work: str, ways: Mapping[str, Callable[[], None]], default: str
) -> None:
    times = bench.time(key, work, ways, default)
    taken, why = choose([compared(times, default)], default, margin=ROWS_MARGIN)
    bench.choice(key, int(taken), int(default), why, under=work, advice=True)

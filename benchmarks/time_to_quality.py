"""Minutes from the base model to a 60% win rate: nplus's road against one of TRL 1.12.0's parts.

    python benchmarks/time_to_quality.py [--minutes 7]

Both sides start from the same pretrained toy and train on the same demonstrations, comparisons and
prompts: SFT, reward model, PPO. After every PPO update the policy is saved with the clock stopped,
and one judge, nplus's evaluation, sets each snapshot's near-greedy responses against the references
by the world's gold score (`quality.py`).

Each side has the same grid of settings under two tuning seeds, judged on validation posts; its best
one (`quality.best`) runs under fresh seeds, judged on test posts. The time to quality is the
clock's at the first snapshot that wins 60% and whose successor does too. Every piece is kept in
`--work`, so that a benchmark that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import quality
from common import PEERS, ROOT, TUNED_MALLOC
from rich.console import Console

from nplus.config import RunConfig
from nplus.config.load import load_config
from nplus.data.collate import pair_rows, sequence_rows
from nplus.recipes import recipe
from nplus.records import Comparison, read_records
from nplus.runs import RunRoot
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context
from nplus.stages.road import run_road

SETUP_SEED, TUNING_SEEDS, SEEDS = 1, (11, 12), (24, 25, 26)
GRID = tuple((lr, kl) for kl in (0.06, 0.03) for lr in (5e-4, 1e-3))
"""Settings that each side tries: PPO's learning rate (the critic's is twice that) and KL
coefficient."""
UPDATES, EVERY = 16, 1
FAST = ("compute.matmul_precision=medium", "model.attn_implementation=batched")
FAST_PPO = ("ppo.autocast=bfloat16", "ppo.old_logprobs=sampler")
SPEED = {
    "attention": "eager",
    "matmul_precision": "medium",
    "bf16": True,
    "by_length": True,
    "sft_rows": 32,
    "reward_pairs": 24,
    "pad_to_multiple_of": 16,
    "loss_type": "nll",
}
"""What makes TRL fast on these cores, each tried against its alternatives: attention (sdpa),
precision of products (highest), autocast (none), batches of like length (random), rows and pairs of
a forward (half and twice as many), widths (the longest row's; 32), SFT's loss (chunked), and
`torch_compile`, whose compilation takes longer than the stage."""


@dataclass(frozen=True)
class Cell:
    """One road to its end: who, under which seed, with which learning rate and KL coefficient."""

    side: str
    seed: int
    lr: float
    kl: float

    @property
    def name(self) -> str:
        return f"ppo-{self.lr:g}-{self.kl:g}"


@dataclass(frozen=True)
class Bench:
    """Where the pieces lie, and how much work they are."""

    work: Path
    threads: int
    updates: int
    speed: dict[str, Any]
    grid: tuple[tuple[float, float], ...] = GRID
    seeds: tuple[int, ...] = SEEDS

    def front(self, side: str, seed: int) -> Path:
        return self.work / side / f"seed-{seed}" / "front"

    def cell(self, cell: Cell) -> Path:
        return self.work / cell.side / f"seed-{cell.seed}" / cell.name

    def tuning(self) -> list[Cell]:
        """Sides in turns, so that a slow hour is slow for both."""
        return [
            Cell(side, seed, *at)
            for seed in TUNING_SEEDS
            for at in self.grid
            for side in quality.SIDES
        ]

    def final(self) -> list[Cell]:
        """The best setting of each side under every fresh seed."""
        best = {side: quality.best(self, side) for side in quality.SIDES}
        return [Cell(side, seed, *best[side]) for seed in self.seeds for side in quality.SIDES]

    def context(self) -> Context:
        """The set-up's run under nplus's fast settings and the set-up's seed: one judge for all."""
        sets = (f"seed={SETUP_SEED}", f"compute.threads={self.threads}", *FAST)
        config = load_config(recipe("toy"), sets=sets)
        stages = RunRoot(self.work / "setup").stages()
        return Context(config, resolve_device(config.compute), Console(quiet=True), stages)


def make_setup(bench: Bench) -> None:
    """What both sides share: the world, the base model, and comparisons of samples that neither
    side drew (those of the set-up's own SFT policy)."""
    run_road(
        load_config(recipe("toy"), sets=(f"seed={SETUP_SEED}",)),
        bench.work / "setup",
        until="label",
    )
    ctx = bench.context()
    found = read_records(ctx.dirs["label"].comparisons, Comparison)
    pairs = pair_rows(ctx.codec, [row for row in found if row.split == "train"])
    posts = ctx.data.demonstrations("train")
    rows = {
        "sft": [query + response for query, response in sequence_rows(ctx.codec, posts)],
        "pairs": [[row.query + row.chosen, row.query + row.rejected] for row in pairs],
        "prompts": ctx.codec.encode_queries([post.query for post in posts]),
    }
    aside = bench.work / "rows.tmp"
    aside.write_text(json.dumps(rows))
    aside.replace(bench.work / "rows.json")


def spec_of(bench: Bench, side: str, seed: int, cell: Cell | None) -> dict[str, Any]:
    """All that a program is told: the front's spec, or with a cell its PPO's."""
    spec: dict[str, Any] = {
        "part": "ppo" if cell else "front",
        "threads": bench.threads,
        "seed": seed,
        "front": str(bench.front(side, seed)),
    }
    if cell:
        spec |= {"out": str(bench.cell(cell)), "updates": bench.updates, "every": EVERY}
    stages = RunRoot(bench.work / "setup").stages()
    sets = [f"seed={seed}", f"compute.threads={bench.threads}", *FAST, *FAST_PPO]
    if cell:
        sets += [
            f"ppo.total_episodes={bench.updates * 64}",
            f"ppo.optim.learning_rate={cell.lr}",
            f"ppo.value_learning_rate={2 * cell.lr}",
            f"ppo.kl_coef={cell.kl}",
        ]
    if side == "nplus":
        return spec | {"sets": sets, "stages": {k: str(v.path) for k, v in stages.items()}}
    return spec | {
        "base": str(stages["pretrain"].model),
        "tokenizer": str(stages["pretrain"].model),
        "rows_file": str(bench.work / "rows.json"),
        "speed": bench.speed,
        **trl_settings(load_config(recipe("toy"), sets=sets), bench.speed),
    }


def trl_settings(config: RunConfig, speed: dict[str, Any]) -> dict[str, Any]:
    """The recipe's hyper-parameters by TRL's names."""

    def batches(rows: int, at_once: int) -> dict[str, int]:
        return {
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": rows // at_once,
        }

    found: dict[str, Any] = {}
    for name in ("sft", "reward", "ppo"):
        cfg = getattr(config, name)
        found[name] = {
            "learning_rate": cfg.optim.learning_rate,
            "lr_scheduler_type": cfg.optim.lr_scheduler_type,
            "warmup_steps": cfg.optim.warmup_steps,
            "adam_epsilon": cfg.optim.adam_epsilon,
            "weight_decay": cfg.optim.weight_decay,
            "max_grad_norm": cfg.optim.max_grad_norm or 0.0,
        }
    sft, reward, ppo = config.sft, config.reward, config.ppo
    found["sft"] |= {"num_train_epochs": sft.epochs}
    found["sft"] |= batches(sft.batch.batch_size, speed["sft_rows"])
    found["sft"] |= {"loss_type": speed["loss_type"]}
    found["reward"] |= {"num_train_epochs": reward.epochs}
    found["reward"] |= batches(reward.batch.batch_size, speed["reward_pairs"])
    for name in ("sft", "reward"):
        found[name] |= {"pad_to_multiple_of": speed["pad_to_multiple_of"]}
    # One micro-batch of all rows: with accumulation TRL would step once an epoch, not once a
    # minibatch. A forward then takes a minibatch.
    found["ppo"] |= batches(ppo.batch_size, ppo.batch_size) | {
        "total_episodes": ppo.total_episodes,
        "local_rollout_forward_batch_size": ppo.rollout_micro_batch_size,
        "num_ppo_epochs": ppo.num_ppo_epochs,
        "num_mini_batches": ppo.num_mini_batches,
        "response_length": ppo.sampling.response_length,
        "temperature": ppo.sampling.temperature,
        "stop_token": ppo.stop_token,
        "missing_eos_penalty": ppo.missing_eos_penalty,
        "kl_coef": ppo.kl_coef,
        "gamma": ppo.gamma,
        "lam": ppo.lam,
        "cliprange": ppo.cliprange,
        "cliprange_value": ppo.cliprange_value,
        "vf_coef": ppo.vf_coef,
    }
    return found | {"value_learning_rate": ppo.value_learning_rate}


def run_program(bench: Bench, side: str, seed: int, cell: Cell | None) -> None:
    """A side's program in a process of its own; what an ended attempt left is removed first."""
    out = bench.cell(cell) if cell else bench.front(side, seed)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "spec.json").write_text(json.dumps(spec_of(bench, side, seed, cell), indent=1))
    python = sys.executable if side == "nplus" else str(PEERS / "trl-1.12.0" / "bin" / "python")
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [python, str(ROOT / "benchmarks/programs" / f"{side}_road.py"), out / "spec.json"],
        env=os.environ | TUNED_MALLOC | quiet,
        stdout=(out / "stdout.log").open("w"),
        check=True,
    )


Piece = tuple[str, Path, Callable[[], None]]
"""Name, the file that says it is there, and how it is made."""


def cell_pieces(bench: Bench, cells: list[Cell], split: str) -> Iterator[Piece]:
    for cell in cells:
        front, out = bench.front(cell.side, cell.seed), bench.cell(cell)
        who = f"{cell.side} seed {cell.seed}"
        make = partial(run_program, bench, cell.side, cell.seed)
        yield f"{who}: SFT and reward model", front / "done.json", partial(make, None)
        judge = partial(quality.judge_front, bench, cell)
        yield (
            f"{who}: both judged on {split}",
            front / f"judged-{split}.json",
            partial(judge, split),
        )
        yield f"{who}: {cell.name}", out / "done.json", partial(make, cell)
        judge = partial(quality.judge_cell, bench, cell)
        yield f"{who}: {cell.name} on {split}", out / f"judged-{split}.json", partial(judge, split)


def pieces(bench: Bench) -> Iterator[Piece]:
    """All of the work in order; what comes later depends on what was found before."""
    yield "set-up", bench.work / "rows.json", lambda: make_setup(bench)
    yield from cell_pieces(bench, bench.tuning(), "valid")
    yield from cell_pieces(bench, bench.final(), "test")


def require_same(bench: Bench) -> None:
    """Pieces of other settings must not be mixed with these."""
    path = bench.work / "bench.json"
    asked = {
        "threads": bench.threads,
        "updates": bench.updates,
        "every": EVERY,
        "speed": bench.speed,
        "seeds": [SETUP_SEED, *TUNING_SEEDS],
    }
    bench.work.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(asked, indent=1))
    if json.loads(path.read_text()) != asked:
        raise SystemExit(f"{bench.work} holds pieces of other settings: name another --work")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "time-to-quality")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no piece later than this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/time-to-quality.png")
    args = parser.parse_args()
    bench = Bench(args.work.resolve(), args.threads, args.updates, SPEED)
    require_same(bench)
    started = time.perf_counter()
    for name, path, make in pieces(bench):
        if path.exists():
            continue
        began = time.perf_counter()
        if began - started > 60 * args.minutes:
            raise SystemExit(f"next: {name}")
        make()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    quality.report(bench, args.figure)


if __name__ == "__main__":
    main()

"""Optimiser steps of SFT, reward modelling and DPO against current TRL's, in turns.

    python benchmarks/trainers.py --stage sft reward dpo --repeats 7
    python benchmarks/trainers.py --stage sft --search

Both sides start from the same weights and read the same token ids, whose lengths vary; loss,
gradient norm and the distance the weights moved in the first step have to agree. Collating and
padding are in the timing, tokenising and loading are not. `--search` times the rival in several
configurations; `RIVAL` holds what was found fastest.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import roofline
import torch
from common import Program, keep, require_parity, run, summary, trl_step
from ppo_update import SHAPES, corpus, network
from roofline import VOCAB, Sizes

from nplus.data.tokens import train_bpe
from nplus.models.files import save_causal_lm
from nplus.models.scalar import ScalarModel

Spec = dict[str, Any]
STAGES = ("sft", "sft-response", "reward", "dpo")
"""`sft-response` has its loss on the response alone."""
BATCH = 64
QUERY_TOKENS, RESPONSE_TOKENS = (40, 90), (10, 60)
"""Shortest and longest; a response's with EOS."""
PEER, ENVIRONMENT = "TRL 1.16.0", "trl-current"
BOUNDS = {"float32": 2e-3, "bfloat16": 0.05}
RIVAL: Spec = {"attention": "eager", "grouped": False, "products": "medium"}
RIVAL_ROWS = (64, 32)
"""Rows, or pairs, of one forward of the rival: all are timed, the fastest counts."""
OURS = {"sft": 16, "reward": 8, "dpo": 8}
"""Rows, or pairs, of one forward."""


def rows_of(stage: str, count: int, eos: int) -> list[dict[str, list[int]]]:
    """Random ids: a query and one response, or two; every response ends with EOS."""
    generator = torch.Generator().manual_seed(3)

    def ids(bounds: tuple[int, int], *, end: bool) -> list[int]:
        low, high = bounds
        length = int(torch.randint(low, high + 1, (), generator=generator)) - end
        return torch.randint(300, VOCAB, (length,), generator=generator).tolist() + [eos] * end

    names = ("response",) if stage.startswith("sft") else ("chosen", "rejected")
    return [
        {"query": ids(QUERY_TOKENS, end=False)}
        | {name: ids(RESPONSE_TOKENS, end=True) for name in names}
        for _ in range(count)
    ]


def multiplications(stage: str, sizes: Sizes, rows: list[dict[str, list[int]]]) -> float:
    """Multiply-adds of training on all rows once, a pair's query read once; a backward pass is two
    forwards."""
    total = 0.0
    passes = 4 if stage == "dpo" else 3  # of DPO the reference looks too
    for row in rows:
        query, others = len(row["query"]), row.keys() - {"query"}
        total -= passes * (len(others) - 1) * roofline.forward(sizes, query, 0, 0)
        for name in others:
            own = len(row[name])
            read = {"reward": 1, "sft": query + own - 1}.get(stage, own)
            head = 0 if stage == "reward" else read
            total += passes * roofline.forward(sizes, query + own, read, head)
    return total


def build(root: Path, shape: str) -> Spec:
    """Models and tokenizer on disk; DPO's reference is the policy, a little moved."""
    codec = train_bpe(corpus(), VOCAB)
    codec.save(root / "tokenizer")
    policy = network(SHAPES[shape], codec)
    save_causal_lm(policy, root / "sft" / "model", codec.tokenizer)
    ScalarModel.from_causal(policy, pad_id=codec.pad_id, seed=1).save(
        root / "reward" / "model", codec.tokenizer
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=2e-3)
    save_causal_lm(policy, root / "reference" / "model", codec.tokenizer)
    return {"root": str(root), "tokenizer": str(root / "tokenizer"), "eos": codec.eos_id}


def ours(stage: str, precision: str, products: str, extra: list[str]) -> list[str]:
    """Settings as after --set."""
    part = stage.removesuffix("-response")
    sets = {
        "compute.device": "cpu",
        "compute.autocast": "bfloat16" if precision == "bfloat16" else "none",
        "compute.matmul_precision": products,
        "model.attn_implementation": "batched",
        f"{part}.batch.batch_size": BATCH,
        f"{part}.batch.micro_batch_size": OURS[part],
        f"{part}.epochs": 100_000,
        f"{part}.optim.name": "adamw",
        f"{part}.optim.learning_rate": 1e-4,
        f"{part}.optim.lr_scheduler_type": "constant",
        f"{part}.optim.warmup_steps": 0,
        f"{part}.optim.weight_decay": 0.0,
        f"{part}.optim.max_grad_norm": 1.0,
    }
    if part == "sft":
        sets["sft.loss_on"] = "response" if stage == "sft-response" else "all"
    else:
        sets[f"{part}.layout"] = "shared"
    return [*(f"{key}={value}" for key, value in sets.items()), *extra]


def theirs(stage: str, rows: int, precision: str) -> Spec:
    """Arguments of the rival's config; what is not named is its default."""
    found = trl_step(precision) | {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": BATCH // rows,
    }
    return found | {"sft": {}, "reward": {}, "dpo": {"beta": 0.05}}[stage.split("-")[0]]


def nplus(stage: str, precision: str, products: str, spec: Spec, extra: list[str]) -> Program:
    name = f"nplus {precision}" + (" exact products" if products == "highest" else "")
    return Program(
        name, "nplus_trainers.py", spec | {"sets": ours(stage, precision, products, extra)}
    )


def rival(stage: str, precision: str, how: Spec, spec: Spec, name: str) -> Program:
    more = {"args": theirs(stage, how["rows"], precision)} | how
    return Program(name, "trl_trainers.py", spec | more, ENVIRONMENT)


def choices(stage: str, precision: str) -> list[Spec]:
    """The configurations of the rival that `--search` times."""
    keys = ("rows", "attention", "grouped", "products")
    products = ("highest", "medium") if precision == "float32" else ("medium",)
    found: list[Spec] = [
        dict(zip(keys, values, strict=True))
        for values in itertools.product((64, 32, 16), ("eager", "sdpa"), (False, True), products)
    ]
    if stage.startswith("sft"):
        found += [
            dict(zip(keys, (rows, attention, False, "highest"), strict=True), padding_free=True)
            for rows, attention in itertools.product((16, 4), ("eager", "sdpa"))
        ]
    return found


def show(rows: list[Spec], bases: list[Spec]) -> None:
    for row in rows:
        each = row["seconds"]
        line = f"  {row['name']:<32} {each['median']:.4f} [{each['low']:.4f}, {each['high']:.4f}]"
        for base in bases:
            line += f"  {base['seconds']['median'] / each['median']:.2f}x"
        print(f"{line}  peak {row['peak_rss_gib']:.2f} GiB", flush=True)


def fastest(rows: list[Spec], precision: str) -> Spec:
    """The rival's best in a precision."""
    own = [row for row in rows if row["name"].startswith(f"{PEER} {precision}")]
    return min(own, key=lambda row: float(row["seconds"]["median"]))


def compare(stage: str, args: argparse.Namespace, spec: Spec) -> None:
    """Both sides in turns; the rival as `RIVAL` has it, with each of `RIVAL_ROWS`."""
    programs, bounds = [], []
    for precision in args.precision:
        for products in ("medium", "highest") if precision == "float32" else ("medium",):
            programs.append(nplus(stage, precision, products, spec, args.set))
            bounds.append(BOUNDS[precision])
    for precision in () if args.no_rival else args.precision:
        for count in RIVAL_ROWS:
            name = f"{PEER} {precision}, {count} rows"
            programs.append(rival(stage, precision, RIVAL | {"rows": count}, spec, name))
            bounds.append(BOUNDS[precision])
    run(programs, args.repeats, lambda: require_parity(programs, bounds))
    parity = require_parity(programs, bounds)
    rows = [summary(program) for program in programs]
    print(f"{stage}: seconds a step of {BATCH}, median of {args.repeats} [range]")
    bases = [] if args.no_rival else [fastest(rows, precision) for precision in args.precision]
    print("  times as fast as", ", ".join(base["name"] for base in bases))
    show(rows, bases)
    count = multiplications(stage, SHAPES[args.shape], spec["data"]) / args.steps
    roofline.mark(rows, {kind: {kind: count} for kind in ("float32", "bfloat16")}, args.threads)
    print("  largest relative difference before timing:", max(parity.values(), default=0.0))
    if not args.no_rival:
        found = {"programs": rows, "parity": parity, "rival": RIVAL}
        keep(f"trainers-{stage}-{args.shape}", found)


def search(stage: str, args: argparse.Namespace, spec: Spec) -> None:
    """The rival's configurations, one after the other."""
    found = []
    for precision in args.precision:
        for how in choices(stage, precision):
            name = f"{precision} " + " ".join(str(value) for value in how.values())
            program = rival(stage, precision, how, spec, name)
            try:
                run([program], args.repeats)
            except SystemExit as error:
                print(f"  {name}: {error}")
                continue
            found.append(summary(program))
            show(found[-1:], [])
    found.sort(key=lambda row: row["seconds"]["median"])
    print(f"{stage}: {PEER}'s configurations, the fastest first")
    show(found, found[:1])
    keep(f"trainers-{stage}-{args.shape}-search", {"programs": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of one repeat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--search", action="store_true", help="time the rival's configurations")
    parser.add_argument("--no-rival", action="store_true", help="time nplus alone")
    parser.add_argument("--set", nargs="*", default=[], help="settings of nplus, as after --set")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        spec = build(Path(scratch), args.shape)
        spec |= {"threads": args.threads, "steps": args.steps}
        args.set.append(f"compute.threads={args.threads}")
        for stage in args.stage:
            rows = rows_of(stage, args.steps * BATCH, spec["eos"])
            (search if args.search else compare)(stage, args, spec | {"stage": stage, "data": rows})


if __name__ == "__main__":
    main()

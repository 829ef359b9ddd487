"""An update of RLOO, GRPO or online DPO against current TRL's: same models, prompts, settings.

    python benchmarks/group_update.py --kind rloo grpo online-dpo --repeats 7

64 responses of 48 tokens to prompts of 64 tokens, one optimiser step. The first update has scripted
responses on both sides, and the mean score, the gradient's norm and the distance the weights moved
have to agree; those that are timed draw their own. Both score token ids with the same reward model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import roofline
import torch
from common import Program, keep, require_parity, run, summary, trl_step
from ppo_update import FAST, NEW_TOKENS, PROMPT_TOKENS, SHAPES, build
from roofline import VOCAB, Sizes

Spec = dict[str, Any]
ROWS = 64
"""Responses of one update."""
GENERATIONS = {"rloo": 4, "grpo": 8, "online-dpo": 2}
"""Responses to a prompt; TRL's online DPO draws two."""
PEER, ENVIRONMENT = "TRL 1.16.0", "trl-current"
RIVAL_ROWS = {"rloo": (64, 32), "grpo": (64, 32), "online-dpo": (64,)}
"""Rows of one forward of the rival: all are timed, the fastest counts. Its online DPO sums the
gradients of micro-batches where it should take their mean, so it has but one."""
BOUNDS = {"float32": 2e-3, "bfloat16": 0.05}


def multiplications(kind: str, sizes: Sizes) -> float:
    """Multiply-adds of an update: sampling, the reference and the reward model, and training, each
    prompt read once; a backward pass is two forwards."""
    samples = GENERATIONS[kind]
    drawn = roofline.generation(sizes, PROMPT_TOKENS, NEW_TOKENS, samples)
    trunk = roofline.shared(sizes, PROMPT_TOKENS, NEW_TOKENS, samples)
    head = VOCAB * sizes[0] * NEW_TOKENS * samples
    return ROWS / samples * (drawn + 2 * trunk + head + 3 * (trunk + head))


def ours(kind: str, precision: str, micro: int, extra: list[str]) -> list[str]:
    """Settings as after --set."""
    part = "online_dpo" if kind == "online-dpo" else "reinforce"
    own = {
        "rloo": {"algorithm": "rloo", "kl_coef": 0.05},
        "grpo": {"algorithm": "grpo", "kl_coef": 0.04},
        "online-dpo": {"beta": 0.1},
    }[kind]
    sets = {
        "num_generations": GENERATIONS[kind],
        "batch_size": ROWS,
        "micro_batch_size": micro,
        "layout": "shared",
        "rollout_micro_batch_size": ROWS,
        "total_episodes": 100_000 * ROWS,
        "autocast": "bfloat16" if precision == "bfloat16" else "none",
        "old_logprobs": "sampler",
        "missing_eos_penalty": "null",
        "optim.name": "adamw",
        "optim.learning_rate": 1e-4,
        "optim.lr_scheduler_type": "constant",
        "optim.max_grad_norm": 1.0,
        "sampling.temperature": 0.7,
        "sampling.response_length": NEW_TOKENS,
        **own,
    }
    if kind == "online-dpo":
        sets |= {"old_logprobs": "trainer"}  # of which the loss reads none
    return [
        "compute.device=cpu",
        "compute.matmul_precision=medium",
        "model.attn_implementation=batched",
        *(f"{part}.{key}={value}" for key, value in sets.items()),
        *extra,
    ]


def theirs(kind: str, rows: int, precision: str) -> Spec:
    """Arguments of the rival's config; what is not named is its default."""
    found = trl_step(precision) | {"temperature": 0.7}
    if kind == "online-dpo":  # rows are prompts, of two responses each
        return found | {
            "per_device_train_batch_size": rows // 2,
            "gradient_accumulation_steps": ROWS // rows,
            "max_new_tokens": NEW_TOKENS,
            "beta": 0.1,
            "train_sampling_strategy": "sequential",
        }
    found |= {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": ROWS // rows,
        "num_generations": GENERATIONS[kind],
        "max_completion_length": NEW_TOKENS,
        "shuffle_dataset": False,
        "beta": {"rloo": 0.05, "grpo": 0.04}[kind],
    }
    more = {"loss_type": "grpo", "use_bias_correction_kl": False} if kind == "grpo" else {}
    return found | more


def told(kind: str, spec: Spec) -> Spec:
    """The prompts of one update, and a scripted response to each of their samples."""
    count, samples = ROWS // GENERATIONS[kind], GENERATIONS[kind]
    generator = torch.Generator().manual_seed(2)
    responses = torch.randint(2, VOCAB, (count, samples, NEW_TOKENS), generator=generator)
    names = {name: spec[name][:count] for name in ("texts", "queries")}
    return spec | names | {"kind": kind, "responses": responses.tolist()}


def compare(kind: str, args: argparse.Namespace, spec: Spec) -> None:
    """Both sides in turns; the rival made fast, with each of `RIVAL_ROWS`."""
    programs = [
        Program(
            f"nplus {precision}",
            "nplus_groups.py",
            spec | {"sets": ours(kind, precision, args.micro, args.set)},
        )
        for precision in args.precision
    ]
    if not args.no_rival:
        programs += [
            Program(
                f"{PEER} {precision}, {rows} rows",
                "trl_groups.py",
                spec | {"args": theirs(kind, rows, precision)} | FAST,
                ENVIRONMENT,
            )
            for precision in args.precision
            for rows in RIVAL_ROWS[kind]
        ]
    bounds = [BOUNDS["bfloat16" if "bfloat16" in each.name else "float32"] for each in programs]
    run(programs, args.repeats, lambda: require_parity(programs, bounds))
    parity = require_parity(programs, bounds)
    rows = [summary(program) for program in programs]
    print(f"{kind}: seconds an update of {ROWS} responses, median of {args.repeats} [range]")
    for row in rows:
        each = row["seconds"]
        print(
            f"  {row['name']:<30} {each['median']:.3f} [{each['low']:.3f}, {each['high']:.3f}]  "
            f"rollout {row['rollout']['median']:.3f}  peak {row['peak_rss_gib']:.2f} GiB"
        )
    for precision in () if args.no_rival else args.precision:
        own = next(row for row in rows if row["name"] == f"nplus {precision}")
        others = [row for row in rows if row["name"].startswith(f"{PEER} {precision}")]
        best = min(others, key=lambda row: float(row["seconds"]["median"]))
        ratio = best["seconds"]["median"] / own["seconds"]["median"]
        print(f"  nplus {precision} {ratio:.2f} times as fast as {best['name']}")
    count = multiplications(kind, SHAPES[args.shape])
    roofline.mark(rows, {kind: {kind: count} for kind in args.precision}, args.threads)
    if not args.no_rival:
        print("  largest relative difference before timing:", max(parity.values()))
        keep(f"group-update-{kind}-{args.shape}", {"programs": rows, "parity": parity})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=GENERATIONS, default=list(GENERATIONS))
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=32, help="rows of one forward, ours")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--no-rival", action="store_true", help="time nplus alone")
    parser.add_argument("--set", nargs="*", default=[], help="settings of nplus, as after --set")
    args = parser.parse_args()
    args.set.append(f"compute.threads={args.threads}")
    with tempfile.TemporaryDirectory() as scratch:
        spec = build(Path(scratch), SHAPES[args.shape]) | {"threads": args.threads}
        for kind in args.kind:
            compare(kind, args, told(kind, spec))


if __name__ == "__main__":
    main()

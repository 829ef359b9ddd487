"""What the doctor costs a run: the time spent looking, against that of the stages.

    python benchmarks/doctor.py [--recipe toy] [--out DIR] [--until STAGE] [--set KEY=VALUE ...]

Runs the recipe once with the doctor on and adds up the wall time of every look. A directory given
with --out is kept, so a second call measures PPO alone after its stage is removed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from nplus.config.load import load_config
from nplus.recipes import recipe
from nplus.stages.doctor.watch import Watch
from nplus.stages.road import run_road

spent: dict[str, float] = defaultdict(float)
looks: dict[str, int] = defaultdict(int)


def timed(method, stage_of):
    """`method` with its wall time added to the stage that it looks at; nested looks count once."""

    def run(self, *args):
        began = time.perf_counter()
        stage = stage_of(args)
        inner = spent[stage]
        try:
            return method(self, *args)
        finally:
            spent[stage] = inner + time.perf_counter() - began
            looks[stage] += 1

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="toy")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--until", help="the last stage")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    given = parser.parse_args()
    Watch._begin = timed(Watch._begin, lambda args: args[0])
    Watch.step = timed(Watch.step, lambda args: args[0])
    Watch.update = timed(Watch.update, lambda args: "ppo")
    config = load_config(recipe(given.recipe), sets=given.sets)
    with tempfile.TemporaryDirectory() as folder:
        root = run_road(
            config, given.out or Path(folder) / "run", until=given.until, console=Console()
        )
        print(f"{'stage':<10}{'looks':>7}{'seconds':>9}{'of':>9}{'share':>8}")
        for name, where in root.stages().items():
            if name in spent:
                whole = where.manifest().seconds
                print(
                    f"{name:<10}{looks[name]:>7}{spent[name]:>9.3f}{whole:>9.1f}"
                    f"{spent[name] / whole:>8.2%}"
                )


if __name__ == "__main__":
    main()

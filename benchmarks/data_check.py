"""How long `nplus data check` takes for 100,000 rows, start of the process and all.

    python benchmarks/data_check.py

Rows are posts of the embedded world, and comparisons of their references, each made distinct by a
number in the post; `--long` makes posts about as long as Reddit's, three of the world's in one. The
tokenizer is the one that the recipe `toy` trains. Fails where a check takes longer than `SECONDS`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nplus.data.tokens import train_bpe
from nplus.data.world.export import WorldSpec, posts

SECONDS = 20.0
SEEDS = 2_000
"""Posts of the world that the rows are made of."""


def demonstrations(count: int, long: bool) -> Iterator[dict[str, Any]]:
    """Distinct posts with their references."""
    made = [row for row, _ in posts(WorldSpec(train=SEEDS), "train")]
    for number in range(count):
        row = made[number % SEEDS]
        text = row["post"]
        if long:
            more = [made[(number * k + k) % SEEDS]["post"] for k in (3, 7)]
            text = "\n\n".join([text, *more])
        yield {**row, "id": f"post {number}", "post": f"No. {number}. {text}"}


def pairs(count: int, long: bool) -> Iterator[dict[str, Any]]:
    """A post's reference against the next one's, in the public schema."""
    rows = list(demonstrations(count, long))
    for number, row in enumerate(rows):
        texts = [row["summary"], f"{rows[number - 1]['summary']} ({number})"]
        yield {
            "info": {key: row[key] for key in ("id", "subreddit", "title", "post")},
            "summaries": [{"text": f" {text}", "policy": "p"} for text in texts],
            "choice": number % 2,
            "worker": "w",
            "batch": "batch9",
            "split": "train",
            "extra": {"confidence": None},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    slow = []
    with tempfile.TemporaryDirectory(prefix="nplus-check-") as scratch:
        folder = Path(scratch)
        texts = (row["post"] + row["summary"] for row, _ in posts(WorldSpec(train=SEEDS), "train"))
        train_bpe(texts, 2048).save(folder / "tokenizer")
        for make in (demonstrations, pairs):
            path = folder / f"{make.__name__}.jsonl"
            with path.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in make(options.rows, options.long))
            seconds, busy, peak = timed(path, folder / "tokenizer")
            size = path.stat().st_size / 1e6
            print(
                f"{make.__name__}: {options.rows:,} rows, {size:.0f} MB: {seconds:.1f} s "
                f"({busy:.1f} s of processor time, at most {peak:.2f} GiB)"
            )
            slow += [make.__name__] if seconds > SECONDS else []
    if slow:
        raise SystemExit(f"{', '.join(slow)}: over {SECONDS:.0f} s")


def timed(path: Path, tokenizer: Path) -> tuple[float, float, float]:
    """Seconds of one call of the command, its processor time, and the peak of memory so far."""
    command = [sys.executable, "-m", "nplus", "data", "check", str(path)]
    command += ["--recipe", "toy", "--tokenizer", str(tokenizer), "--out", f"{path}.json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    report = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    print(done.stdout.splitlines()[-1], done.stderr)
    assert report["lengths"]["unit"] == "tokens"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, used.ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()

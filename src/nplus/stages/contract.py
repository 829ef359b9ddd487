"""The data contract: what a stage reads or makes is checked before any later stage learns from it.

The checks are those of `nplus data check`. Errors end the run before the stage has written
anything; warnings are told in a line, and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplus.data.check import Checker, check_source, one_line
from nplus.data.check.report import require
from nplus.data.check.rows import as_raw
from nplus.data.check.source import first_rows, parts
from nplus.data.files import is_local
from nplus.data.fit import Raw
from nplus.data.sources import RawComparison, RawDemonstration
from nplus.data.tldr import fill, template_fields
from nplus.records import Comparison, Demonstration, InputError, RowError

if TYPE_CHECKING:
    from rich.console import Console

    from nplus.config import RunConfig
    from nplus.data.tokens import Codec
    from nplus.runs import StageDir
    from nplus.stages.context import Context

NAMED = 5
"""Faulty rows that a message names."""
TRAINED_ON = ("train", "pretrain")
"""Splits that are not held out."""
BPE_ROWS = 8_000
"""Rows that a tokenizer is trained on at most, where a run would train one on all of them."""


def check(
    source: str, config: RunConfig, tokenizer: Path | None = None, against: Iterable[str] = ()
) -> dict[str, Any]:
    """A source as a run of `config` would read it; the report says by which tokenizer."""
    # InputError where nothing is there, or nothing can be made of it, before a tokenizer is loaded.
    if is_local(source):
        next(parts(source))
    if config.data.template is not None:
        template_fields(config.data.template)
    codec, told = codec_of(source, config, tokenizer)
    report = check_source(source, config.data, codec, against)
    return {"recipe": config.recipe, "tokenizer": told, "limits": _limits(config), **report}


def codec_of(
    source: str, config: RunConfig, tokenizer: Path | None
) -> tuple[Codec | None, dict[str, Any]]:
    """The tokenizer of a run of `config`, or the given one, and what to tell of it.

    One that cannot be had is no error, as long as nobody named it: the report says so.
    """
    from nplus.data.tokens import Codec, TextRules, train_bpe

    rules = TextRules.of(config.data, config.tokenizer)
    pad = config.tokenizer.pad_token
    if tokenizer is not None:
        codec = Codec.load(tokenizer, pad_token=pad).for_data(config.data, pad)
        return codec.with_rules(rules), {"name": str(tokenizer), "why": "named by --tokenizer"}
    if config.tokenizer.vocab_size is not None:
        texts = list(_texts(source, config))
        if not texts:
            return None, {"name": None, "why": "no row to train a tokenizer on"}
        codec = train_bpe(texts, config.tokenizer.vocab_size, pad).for_data(config.data, pad)
        why = f"trained on {len(texts):,} texts of it: a run's own may differ by a few tokens"
        return codec.with_rules(rules), {"name": f"BPE of {codec.size} tokens", "why": why}
    from nplus.models.files import model_source

    name = config.model.model_name_or_path
    try:
        found = model_source(config.model)
        trust, revision = config.model.trust_remote_code, config.model.revision
        codec = Codec.load(found, pad_token=pad, trust_remote_code=trust, revision=revision)
        codec = codec.for_data(config.data, pad)
    except InputError as error:
        return None, {"name": None, "why": str(error)}
    return codec.with_rules(rules), {"name": str(name), "why": f"the model's of {config.recipe}"}


def _texts(source: str, config: RunConfig) -> Iterable[str]:
    """Texts of the first rows, as a tokenizer is trained on them."""
    from nplus.data.tokens import response_text

    for row in islice(first_rows(source, config.data), BPE_ROWS):
        texts = row.responses if isinstance(row, RawComparison) else (row.response,)
        for text in texts:
            yield fill(row.template, row.fields) + response_text(text)


def _limits(config: RunConfig) -> dict[str, Any]:
    data = config.data
    keys = ("max_query_tokens", "max_response_tokens", "max_length", "overlong", "truncation")
    return {f"data.{key}": getattr(data, key) for key in keys}


def gathered(
    splits: Mapping[str, Sequence[RawDemonstration]],
    comparisons: Mapping[str, list[RawComparison]],
    codec: Codec,
    config: RunConfig,
) -> dict[str, Any]:
    """All rows that the data stage has read or made; InputError for errors."""
    from nplus.data.tokens import TextRules

    rules = TextRules.of(config.data, config.tokenizer)
    checker = Checker(config.data, codec.with_rules(rules))
    for split, rows in splits.items():
        checker.feed("demonstrations", split, rows)
    for split, pairs in comparisons.items():
        checker.feed("comparisons", split, pairs)
    return _passed(checker)


def labelled(rows: Sequence[Comparison], path: Path, ctx: Context) -> dict[str, Any]:
    """The comparisons that a reward model or DPO is about to learn from; InputError for errors.

    Their prompts are also compared with those that the policies are trained and judged on. Queries
    have been cut already.
    """
    checker = Checker(ctx.config.data, ctx.codec, fitted=True)
    splits: dict[str, list[Raw]] = {}
    for number, row in enumerate(rows, 1):
        splits.setdefault(row.split, []).append(as_raw(row, f"{path.name}, line {number}"))
    for split, pairs in splits.items():
        checker.feed("comparisons", split, pairs)
    for split in ("train", ctx.config.evaluate.split):
        prompts = ctx.data.demonstrations(split)
        checker.known(split, [_prompt(split, n, post) for n, post in enumerate(prompts, 1)])
    return _passed(checker)


def prompts(
    rows: Sequence[Raw], fitted: Sequence[Demonstration], path: Path, ctx: Context
) -> dict[str, Any]:
    """The prompts that the online loop draws responses to, as read and as cut to length; InputError
    for errors. They are trained on: a held-out query that is one of them is told as leakage."""
    checker = Checker(ctx.config.data, ctx.codec)
    checker.feed("prompts", "train", rows)
    own = [_prompt(path.stem, n, row) for n, row in enumerate(fitted, 1)]
    checker.known("train", own)
    for split in ctx.data.splits():
        if split not in TRAINED_ON:
            posts = ctx.data.demonstrations(split)
            checker.known(split, [_prompt(split, n, post) for n, post in enumerate(posts, 1)])
    return _passed(checker)


def _prompt(split: str, number: int, post: Demonstration) -> tuple[str, Raw]:
    where = f"{split}.jsonl, line {number}"
    fields = {"query": post.query}
    return post.query, RawDemonstration(where, post.id, "{query}", None, fields, post.response)


def _passed(checker: Checker) -> dict[str, Any]:
    report = checker.report()
    require(report)
    return report


def in_a_line(report: Mapping[str, Any]) -> str:
    """How many rows were checked, and what was found."""
    return one_line(report)


def keep(where: StageDir, report: Mapping[str, Any], console: Console | None) -> None:
    """Write the report into the stage, and tell it in a line."""
    where.write_data_check(report)
    if console is not None:
        line = f"{in_a_line(report)}; {where.data_check_path}"
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def with_the_rest(error: RowError, config: RunConfig, *sources: str | None) -> InputError:
    """A loader's error, which stops at the first faulty row, with the other faulty rows of the
    `sources` named."""
    rest: list[str] = []
    for source in filter(None, sources):
        report = check_source(source, config.data)
        if report["faulty_rows"] < 2:
            continue
        rows = [r for f in report["findings"] if f["severity"] == "error" for r in f["rows"]]
        numbers = sorted({r["row"] for r in rows if r["row"] is not None})
        shown = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
        count = report["faulty_rows"]
        rest.append(f"{source} has {count:,} faulty rows ({shown}): `nplus data check {source}`")
    return InputError("; ".join([str(error), *rest]))

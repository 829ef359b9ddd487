"""What tokenizer and training rows say: BOS, PAD and EOS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nplus.config import RunConfig
from nplus.data.collate import SequenceRow, sequence_rows, token_batch
from nplus.data.tokens import Codec
from nplus.findings import Finding, found
from nplus.records import Demonstration

ROWS = 128
"""Rows that are looked at; a share of them stands for all."""


def text_findings(
    codec: Codec, rows: Sequence[Demonstration], config: RunConfig
) -> Iterator[Finding]:
    """Of the first demonstrations, as SFT sees them."""
    yield from tokenizer_findings(codec)
    encoded = sequence_rows(codec, rows[:ROWS])
    yield from doubled_bos(encoded, codec.tokenizer.bos_token_id)
    yield from eos_targets(encoded, codec, config.sft.loss_on)


def tokenizer_findings(codec: Codec) -> Iterator[Finding]:
    """Of the tokenizer alone."""
    if codec.pad_id == codec.eos_id:
        yield found("pad_is_eos", f"both are token {codec.eos_id}", token=codec.eos_id)
    yield from template_bos(codec.tokenizer)


def template_bos(tokenizer: Any) -> Iterator[Finding]:
    """Whether the text of the tokenizer's chat template gets a second BOS when it is tokenised."""
    bos = tokenizer.bos_token_id
    if bos is None or not getattr(tokenizer, "chat_template", None):
        return
    turns = [{"role": "user", "content": "Hello"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2's: a template may refuse what it likes
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        return
    ids = tokenizer(text)["input_ids"]
    if ids[:2] == [bos, bos]:
        yield found(
            "template_double_bos",
            f"a message through the chat template begins with token {bos} "
            f"({tokenizer.bos_token!r}) twice",
            token=bos,
        )


def doubled_bos(rows: Sequence[SequenceRow], bos: int | None) -> Iterator[Finding]:
    """Rows of query and response whose first two tokens are BOS."""
    if bos is None:
        return
    doubled = sum([*query, *response][:2] == [bos, bos] for query, response in rows)
    if doubled:
        yield found(
            "double_bos",
            f"{doubled} of {len(rows)} rows begin with token {bos} twice",
            doubled=doubled,
            rows=len(rows),
            token=bos,
        )


def eos_targets(rows: Sequence[SequenceRow], codec: Codec, loss_on: Any) -> Iterator[Finding]:
    """How many rows have an EOS that SFT's loss counts."""
    if not rows:
        return
    batch = token_batch(rows, pad_id=codec.pad_id, loss_on=loss_on)
    is_eos_BT = batch.tokens_BT == codec.eos_id
    trained = int((is_eos_BT & batch.loss_mask_BT).any(1).sum())
    ended = sum(codec.eos_id in response for _, response in rows)
    numbers = {"rows": len(rows), "with_eos": ended, "trained": trained}
    if trained == len(rows):
        return
    why = []
    if ended < len(rows):
        why.append(f"{len(rows) - ended} rows have it cut off")
    if trained < ended:
        why.append(f"{ended - trained} have it masked as padding")
    said = f"EOS is a target in {trained} of {len(rows)} rows ({', '.join(why)})"
    yield found("eos_not_trained" if trained == 0 else "eos_cut", said, **numbers)

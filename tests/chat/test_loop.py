"""The online loop on conversations: what it asks, where responses end, and what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from talk import CHATML, SYSTEM, make_tokenizer, messages, pairs, small

from nplus.models.files import save_causal_lm
from nplus.runs.ledger import read_ledger
from nplus.stages import dpo
from nplus.stages.context import Context
from nplus.stages.online import sample, train
from nplus.stages.road import run_road

LENGTH = 24
LOOP = {
    "rounds": 2,
    "prompts": 6,
    "samples": 4,
    "response_length": LENGTH,
    "micro_batch_size": 12,
    "piece": 6,
    "valid_prompts": 2,
    "train": {
        "batch": {"batch_size": 4, "micro_batch_size": 2},
        "optim": {"learning_rate": 1e-4},
    },
}


@pytest.fixture(scope="module", params=["no BOS", "BOS"])
def talked(request: Any, tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Any:
    """Two rounds: the run, all that was drawn, and how often BOS stands in a conversation."""
    out = tmp_path_factory.mktemp("loop")
    tokenizer = make_tokenizer()
    if request.param == "BOS":
        # The template writes it, and the tokenizer would; and EOS is not the end of a turn.
        special = {"adds_bos": True, "bos_token": "<s>", "eos_token": "</s>"}
        tokenizer = make_tokenizer("{{ bos_token }}" + CHATML, **special)
    save_causal_lm(llama(), out / "instruct", tokenizer)
    for name, rows in (("messages", messages(24)), ("pairs", pairs(24))):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    files: list[Path] = [out / "messages.jsonl", out / "pairs.jsonl"]
    # Enough of SFT for some responses, not all, to end by themselves.
    sft = {"epochs": 20, "optim": {"learning_rate": 1e-2}}
    stages = {"online": LOOP, "ppo": None, "dpo": None, "until": "online"}
    config = small(str(out / "instruct"), *files, **stages, sft=sft)
    drawn: list[Any] = []

    def seen(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        drawn.extend(each for row in found for each in row)
        return found

    original = sample.draw_several
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "draw_several", seen)
        root = run_road(config, out / "run", console=Console(quiet=True))
    ctx = Context(config, torch.device("cpu"), Console(quiet=True), root.stages())
    return SimpleNamespace(root=root, ctx=ctx, drawn=drawn, bos=request.param == "BOS")


def test_the_loop_asks_with_the_template_s_prompts(talked: Any) -> None:
    rows = [row for path in talked.root.ledgers() for row in read_ledger(path)]
    assert [row.round for row in rows] == [1] * 6 + [2] * 6
    head = ("<s>" if talked.bos else "") + f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    posts = {post.id: post.query for post in talked.ctx.data.demonstrations("train")}
    for row in rows:
        assert row.query == posts[row.prompt]
        assert row.query.startswith(f"{head}<|im_start|>user\n")
        assert row.query.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert row.query.count("<s>") == talked.bos


def test_responses_end_at_the_end_of_turn(talked: Any) -> None:
    end = talked.ctx.codec.tokenizer.get_vocab()["<|im_end|>"]
    assert len(talked.drawn) == 2 * 6 * 4
    assert {found.has_eos for found in talked.drawn} == {True, False}
    for found in talked.drawn:
        assert found.tokens.count(end) == found.has_eos
        assert found.tokens[-1] == end if found.has_eos else len(found.tokens) == LENGTH
        assert "<|im_end|>" not in found.text


def test_pairs_are_trained_on_with_one_bos_and_one_end_of_turn(talked: Any) -> None:
    ctx, vocab = talked.ctx, talked.ctx.codec.tokenizer.get_vocab()
    given = train.pairs_of(ctx, 2)
    rows = dpo.rows_of(given, ctx, ctx.config.online.train, "online.train")
    kept = [talked.root.stages()[f"round{n}_pair"].manifest().results["pairs"] for n in (1, 2)]
    assert len(rows) == sum(kept) > 4
    for pair, row in zip(given, rows, strict=True):
        turns = row.query.count(vocab["<|im_start|>"])  # the last one is open
        assert row.query.count(vocab["<|im_end|>"]) == turns - 1
        for ids, ended in zip((row.chosen, row.rejected), pair.ended, strict=True):
            assert [*row.query, *ids].count(vocab["<s>"]) == talked.bos
            assert [*row.query, *ids][0] == vocab["<s>" if talked.bos else "<|im_start|>"]
            assert ids.count(vocab["<|im_end|>"]) == ended
            assert (ids[-1] == vocab["<|im_end|>"]) == ended


def test_the_loop_is_done(talked: Any) -> None:
    stages = talked.root.stages()
    assert {where.manifest().status for where in stages.values()} == {"complete"}
    told = json.loads((stages["online"].model / "generation_config.json").read_text())
    assert told["eos_token_id"] == talked.ctx.codec.tokenizer.get_vocab()["<|im_end|>"]

"""Model directories: configurations, weights and tokenizers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo import POSTS, Case, Make, both, folder, jsonl, link, pipe, sets, text

COMMAND = (
    *("run", "real"),
    *sets("data=posts.jsonl", "model.model_name_or_path=./model", "data.max_query_tokens=64"),
    *("--out", "out"),
)
DATA = jsonl("posts.jsonl", POSTS)
WEIGHTS, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
Damage = Callable[[Path], object]


def damaged(name: str, damage: Damage, *says: str) -> Case:
    """A good model directory, damaged; `{good}` stands for where the good one is."""
    return Case(f"model: {name}", COMMAND, ("model", *says), both(DATA, damage))


def named(value: str, *says: str, make: Make | None = None) -> Case:
    """A name that is no model."""
    command = ("run", "real", *sets("data=posts.jsonl", f"model.model_name_or_path={value}"))
    makes = (DATA, make) if make else (DATA,)
    return Case(f"model name {value[:30]}", (*command, "--out", "out"), says, both(*makes))


def remove(*names: str) -> Damage:
    """Without these files."""

    def damage(place: Path) -> None:
        for name in names:
            (place / "model" / name).unlink()

    return damage


def cut(name: str, keep: int | float) -> Damage:
    """Only the first bytes of a file; a negative number leaves out so many at the end."""

    def damage(place: Path) -> None:
        path = place / "model" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])

    return damage


def config(**changed: Any) -> Damage:
    """Other values in config.json."""

    def damage(place: Path) -> None:
        path = place / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}), encoding="utf-8")

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The weights under a changed safetensors header."""

    def damage(place: Path) -> None:
        path = place / WEIGHTS
        whole = path.read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        found = json.loads(whole[8 : 8 + size])
        change(found)
        new = json.dumps(found).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + whole[8 + size :])

    return damage


def raw(content: bytes) -> Damage:
    return text(WEIGHTS, content)


def first(found: dict[str, Any]) -> dict[str, Any]:
    return next(row for name, row in found.items() if name != "__metadata__")


def sharded(weight_map: Any, *files: str) -> Damage:
    """An index instead of the weights."""

    def damage(place: Path) -> None:
        weights = (place / WEIGHTS).read_bytes()
        (place / WEIGHTS).unlink()
        for name in files:
            (place / name).write_bytes(weights)
        (place / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")

    return damage


def pickled(place: Path) -> None:
    """The weights only as a pickle."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(place / WEIGHTS), place / "model" / "pytorch_model.bin")
    (place / WEIGHTS).unlink()


def with_a_head(place: Path) -> None:
    """The weights of a reward model."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {**load_file(place / WEIGHTS), "score.weight": torch.zeros(1, 64)}
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})


def renamed(found: dict[str, Any]) -> None:
    """Every tensor under another name: another kind of model."""
    for name in [name for name in found if name != "__metadata__"]:
        found[f"other.{name}"] = found.pop(name)


def reshaped(found: dict[str, Any]) -> None:
    row = next(row for row in found.values() if len(row.get("shape", ())) == 2)
    row["shape"] = row["shape"][::-1]


AGAIN = "copy or save the weights again"
CONFIGS = [
    damaged("no config.json", remove("config.json"), "no config.json", "save_pretrained"),
    damaged("an empty config.json", text("model/config.json", ""), "config.json: not valid JSON"),
    damaged("a broken config.json", text("model/config.json", "{"), "config.json: not valid JSON"),
    damaged("a list as config.json", text("model/config.json", "[]"), "config.json", "found list"),
    damaged("UTF-16 config.json", text("model/config.json", "{}".encode("utf-16")), "config.json"),
    damaged("deep config.json", text("model/config.json", "[" * 200_000), "config.json"),
    damaged("config.json of no kind", text("model/config.json", "{}"), "cannot load this model"),
    damaged("an unknown kind", config(model_type="none-such"), "cannot load this model"),
    damaged("a kind that is a number", config(model_type=7), "cannot load this model"),
    damaged("no kind of language model", config(model_type="vit"), "cannot load this model"),
    damaged("a text for a width", config(hidden_size="wide"), "cannot load this model"),
    damaged("null for a width", config(hidden_size=None), "cannot load this model"),
    damaged("no heads", config(num_attention_heads=0), "cannot load this model"),
    damaged("a width below 0", config(hidden_size=-64), "cannot load this model"),
    damaged("another width", config(hidden_size=128), "is of shape"),
    damaged("more layers", config(num_hidden_layers=5), "lacks", "parameters"),
    damaged("weights elsewhere", config(transformers_weights="../w.safetensors"), "../w.safe"),
    damaged("weights by number", config(transformers_weights=7), "names 7"),
    damaged("a folder as config.json", both(remove("config.json"), folder("model/config.json/x"))),
]

TENSORS = [
    damaged("no weights", remove("model.safetensors"), "no weights", "save_pretrained"),
    damaged("empty weights", raw(b""), WEIGHTS, "cut short", AGAIN),
    damaged("seven bytes", raw(b"\0" * 7), WEIGHTS, "cut short"),
    damaged("a header of nothing", raw(struct.pack("<Q", 2) + b"{}"), "no tensors"),
    damaged("an endless header", raw(struct.pack("<Q", 1 << 62) + b"{}"), "cut short"),
    damaged("a header that is cut", cut("model.safetensors", 100), "cut short"),
    damaged("half of the weights", cut("model.safetensors", 0.5), "its header says", AGAIN),
    damaged("a byte less", cut("model.safetensors", -1), "its header says"),
    damaged("garbage", raw(bytes(range(256)) * 40), WEIGHTS, AGAIN),
    damaged("text", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), AGAIN),
    damaged("a header that is no JSON", raw(struct.pack("<Q", 4) + b"{{{{"), "header is damaged"),
    damaged("a header that is a list", raw(struct.pack("<Q", 2) + b"[]"), "header is damaged"),
    damaged("a tensor that is text", header(lambda h: h.update(x="y")), "header is damaged"),
    damaged("a tensor without a shape", header(lambda h: first(h).pop("shape")), "is damaged"),
    damaged("offsets of text", header(lambda h: first(h).update(data_offsets="ab")), "damaged"),
    damaged("offsets beyond", header(lambda h: first(h).update(data_offsets=[0, 1 << 40])), AGAIN),
    damaged("other names", header(renamed), "lacks", "parameters"),
    damaged("another shape", header(reshaped), "is of shape", "config.json asks for"),
    damaged("a dtype of nothing", header(lambda h: first(h).update(dtype="Q7")), "is damaged"),
    damaged("a folder as weights", both(remove("model.safetensors"), folder(f"{WEIGHTS}/x"))),
    damaged("a link to nothing", both(remove("model.safetensors"), link(WEIGHTS, "gone"))),
    damaged("a pipe", both(remove("model.safetensors"), pipe(WEIGHTS)), "no weights"),
    damaged("only a pickle", pickled, "pickle (pytorch_model.bin)", "model.allow_pickle=true"),
    damaged(
        "another pickle",
        both(remove("model.safetensors"), text("model/consolidated.pth", "x")),
        "pickle (consolidated.pth)",
    ),
    damaged("a reward model", with_a_head, "score.weight", "name the directory of a language"),
    damaged("an index of nothing", sharded({}), "no weight_map"),
    damaged("an index that is a list", sharded(["a"]), "no weight_map"),
    damaged("a shard that is gone", sharded({"a": "x.safetensors"}), "model/x.safetensors", "copy"),
    damaged("a shard outside", sharded({"a": "../w.safetensors"}, "w.safetensors"), "'../w.safe"),
    damaged("a shard at the root", sharded({"a": "/etc/passwd"}), "'/etc/passwd'"),
    damaged("a shard that is a pickle", sharded({"a": "x.bin"}, "model/x.bin"), "no .safetensors"),
    damaged("a shard by number", sharded({"a": 7}), "index.json", "'7'"),
    damaged(
        "a broken index", both(remove("model.safetensors"), text(INDEX, "{")), "not valid JSON"
    ),
]

TOKENIZERS = [
    damaged("no tokenizer", remove("tokenizer.json", "tokenizer_config.json"), "tokenizer.json"),
    damaged("an empty tokenizer.json", text("model/tokenizer.json", ""), "no tokenizer"),
    damaged("a broken tokenizer.json", cut("tokenizer.json", 0.5), "no tokenizer"),
    damaged("a tokenizer that is a list", text("model/tokenizer.json", "[]"), "no tokenizer"),
    damaged("a tokenizer of nothing", text("model/tokenizer.json", "{}"), "no tokenizer"),
    damaged("a tokenizer of bytes", text("model/tokenizer.json", b"\xff\0"), "no tokenizer"),
    damaged(
        "a broken tokenizer_config.json", text("model/tokenizer_config.json", "{"), "no tokenizer"
    ),
    damaged(
        "no end of text",
        text("model/tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "no EOS token",
        "set eos_token",
    ),
]

NAMES = [
    named("./none", "none: no such directory", "model.model_name_or_path"),
    named("/none/at/all", "/none/at/all: no such directory"),
    named("a/b/c", "a/b/c: no such directory"),
    named("~nobody-here/m", "~nobody-here/m", "model.model_name_or_path"),
    named("posts.jsonl", "posts.jsonl: a file", "model.model_name_or_path"),
    named("l", "l: no such directory", make=link("l", "gone")),
    named("m" * 300, "File name too long", "model.model_name_or_path"),
    named("null", "no model: set model.size or model.model_name_or_path"),
]

CHECKS = [
    Case(
        f"check, {name}",
        ("check", "real", *sets("model.model_name_or_path=./model")),
        ("model/config.json", "model.model_name_or_path"),
        text("model/config.json", content),
    )
    for name, content in (
        ("a broken config.json", "{"),
        ("a list as config.json", "[]"),
        ("config.json of bytes", b"\xff\xfe"),
        ("a config.json without a width", '{"model_type": "llama"}'),
        ("no heads", '{"model_type": "gpt2", "n_embd": 8, "n_head": 0}'),
        ("deep config.json", "[" * 200_000),
    )
]

CASES = [*CONFIGS, *TENSORS, *TOKENIZERS, *NAMES, *CHECKS]


def prepare(case: Case, good: Path, place: Path) -> None:
    """The good model beside the case's files, damaged as the case has it."""
    if case.command is COMMAND:
        shutil.copytree(good, place / "model")
    case.make(place)

"""Data files: posts, comparisons, and completions from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import (
    PAIRS,
    POSTS,
    Case,
    Make,
    both,
    folder,
    jsonl,
    link,
    pair,
    pipe,
    post,
    sets,
    text,
    with_line,
    without,
)

OWN = sets("label.kind=contrast", "evaluate.judge=reward", "sample=null")
LABELLED = sets("label.kind=data", "evaluate.judge=reward", "sample=null")
LINE = json.dumps(POSTS[0])
PATH = "posts.jsonl"


def run_on(data: str) -> tuple[str, ...]:
    return ("run", "toy:tiny", *sets(f"data={data}"), *OWN, "--out", "out")


def posts(name: str, rows: Any, *says: str, path: str = PATH) -> Case:
    """A file of posts: rows, or what is written instead of them."""
    make = rows if callable(rows) else jsonl(path, rows)
    return Case(f"posts: {name}", run_on(path.split("/")[0]), (path, *says), make)


def row(name: str, line: Any, *says: str) -> Case:
    """Good posts but for line 2."""
    return posts(name, with_line(line), "line 2", *says)


LINES = [
    row("broken JSON", '{"id": "x", "post": ', "not valid JSON", "mend or remove"),
    row("single quotes", "{'post': 'a'}", "not valid JSON"),
    row("a comma too many", LINE[:-1] + ",}", "not valid JSON"),
    row("two objects", LINE + LINE, "Extra data"),
    row("plain text", "once upon a time", "not valid JSON"),
    row("a list", "[1, 2]", "expected a JSON object, found list", "one object a line"),
    row("a number", "7", "found int"),
    row("a text", '"post"', "found str"),
    row("null", "null", "found NoneType"),
    row("Latin-1", LINE.replace("short", "kürz").encode("latin-1"), "not UTF-8", "save the file"),
    row("a byte of nothing", b'{"post": "\xff"}', "not UTF-8"),
    row("NUL bytes", b"\x00" * 40, "not valid JSON"),
    row("a bare NUL in a text", LINE.replace("short", "sh\0rt"), "control character"),
    row("endless nesting", "[" * 200_000, "not JSON that can be read"),
    row("more digits than Python reads", '{"id": ' + "9" * 5000 + "}", "not JSON that can be"),
    row("half a surrogate pair", post(1, post="a \ud800 b"), "surrogate", "mend or remove"),
    row("half a pair in the summary", post(1, summary="\udfff"), "surrogate"),
    row("no post", without(post(1), "post"), "no field 'post'", "add it or remove the row"),
    row("no summary", without(post(1), "summary"), "no field 'summary'"),
    row("other columns", {"question": "a", "answer": "b"}, "no field", "'answer', 'question'"),
    row("an empty object", {}, "no field"),
    row("post is null", post(1, post=None), "field 'post' is null, expected text"),
    row("post is a number", post(1, post=3), "field 'post' is int"),
    row("post is a list", post(1, post=["a"]), "field 'post' is list"),
    row("post is an object", post(1, post={"a": 1}), "field 'post' is dict"),
    row("post is true", post(1, post=True), "field 'post' is bool"),
    row("summary is null", post(1, summary=None), "field 'summary' is null"),
    row("title is a number", post(1, title=1.5), "field 'title' is float"),
    row("post is empty", post(1, post=""), "field 'post' is empty", "fill it in"),
    row("post is white space", post(1, post=" \n\t "), "field 'post' is empty"),
    row("summary is empty", post(1, summary=""), "field 'summary' is empty"),
    row("summary is white space", post(1, summary="\u3000\n"), "field 'summary' is empty"),
    row("one id for two posts", post(1, id="t0"), "'t0'", "line 1", "id of its own"),
    posts("a summary too long", with_line(post(1, summary="w " * 4000)), "max_response_tokens"),
    posts("a title too long", with_line(post(1, title="w " * 4000)), "line 2", "max_query_tokens"),
]

FILES = [
    posts("no bytes", text(PATH, b""), "is empty"),
    posts("only newlines", text(PATH, "\n\n \n"), "is empty"),
    posts("one row", [POSTS[0]], "1 different posts", "give more rows"),
    posts("one post again and again", [POSTS[0]] * 9, "1 different posts"),
    posts("two rows", POSTS[:2], "2 different posts"),
    posts("the last line cut short", text(PATH, f"{LINE}\n{LINE[:-9]}"), "line 2", "not valid"),
    posts("a byte order mark and nothing", text(PATH, "\ufeff"), "line 1", "not valid JSON"),
    posts("UTF-16", text(PATH, f"{LINE}\n".encode("utf-16")), "line 1", "not UTF-8"),
    posts("UTF-16 without a mark", text(PATH, f"{LINE}\n".encode("utf-16-le")), "line 1"),
    posts("UTF-32", text(PATH, f"{LINE}\n".encode("utf-32")), "line 1"),
    posts("CSV", text(PATH, "post,summary\na,b\n"), "line 1", "not valid JSON"),
    posts("a JSON array", text(PATH, json.dumps(POSTS)), "line 1", "found list", "one object"),
    posts("indented JSON", text(PATH, json.dumps(POSTS[0], indent=1)), "line 1", "not valid"),
    posts("Parquet bytes", text(PATH, b"PAR1\x15\x04\x15\xb0PAR1"), "line 1"),
    posts("gzip", text(PATH, b"\x1f\x8b\x08\x00\x00\x00\x00\x00"), "line 1", "not UTF-8"),
    posts("HTML", text(PATH, "<!doctype html>\n<p>404"), "line 1", "not valid JSON"),
    posts("columns of nothing known", [{"a": 1}] * 9, "line 1", "Rename columns"),
    posts("a link in a circle", link(PATH, PATH), "--set data=PATH"),
    posts("a link to nothing", link(PATH, "gone"), "a link to nothing"),
    posts("a pipe", pipe(PATH), "neither a file nor a folder"),
    posts("cannot be read", link(PATH, "/proc/self/mem"), "cannot read it"),
    posts("CSV by name", text("p.csv", "post,summary\n"), "convert it", path="p.csv"),
    posts("text by name", text("p.txt", "a\n"), "unknown kind of file", path="p.txt"),
    posts("gzip by name", text("p.jsonl.gz", b"\x1f"), "unknown kind", path="p.jsonl.gz"),
    posts("Parquet of nothing", text("p.parquet", b""), "not a readable Parq", path="p.parquet"),
    posts("Parquet of JSON", text("p.parquet", LINE), "or give JSONL", path="p.parquet"),
    posts("Parquet, a folder", folder("p.parquet/x"), "no file of the train", path="p.parquet"),
    posts("an empty folder", folder("d"), "train.jsonl or train.parquet", path="d"),
    posts("a folder of odd files", text("d/notes.txt", "x"), "no file of the train", path="d"),
    posts("a folder without train", jsonl("d/test.jsonl", POSTS), "training split", path="d"),
    posts("a folder as train", folder("d/train.jsonl/x"), "is no file", path="d/train.jsonl"),
    posts("an empty train", text("d/train.jsonl", ""), "train is empty", path="d"),
    posts(
        "an empty test",
        both(jsonl("d/train.jsonl", POSTS), text("d/test.jsonl", "")),
        "test is empty",
        path="d",
    ),
    posts("train is a link to nothing", link("d/train.jsonl", "gone"), path="d/train.jsonl"),
    posts("train is a pipe", both(folder("d"), pipe("d/train.jsonl")), path="d/train.jsonl"),
    posts(
        "test is broken",
        both(jsonl("d/train.jsonl", POSTS), text("d/test.jsonl", "{")),
        "line 1: not valid JSON",
        path="d/test.jsonl",
    ),
    Case(
        "posts: nothing to pretrain a toy on",
        run_on(PATH),
        (PATH, "pretrain.jsonl"),
        jsonl(PATH, POSTS),
    ),
]


def parquet(rows: list[dict[str, Any]], damage: int | None = None) -> Make:
    """Writes rows as Parquet; of `damage` bytes only, where given."""

    def make(place: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        path = place / "p.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        path.write_bytes(path.read_bytes()[:damage])

    return make


def not_text(place: Path) -> None:
    """A Parquet column of type string that holds no UTF-8."""
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"\xff\xfe"] * 9).view(pyarrow.string())
    pyarrow.parquet.write_table(
        pyarrow.table({"post": raw, "summary": pyarrow.array(["x"] * 9)}), place / "p.parquet"
    )


PARQUET = [
    posts(f"Parquet {name}", make, *says, path="p.parquet")
    for name, make, says in (
        ("cut short", parquet(POSTS, 700), ("not a readable Parquet file",)),
        ("of its mark alone", parquet(POSTS, 4), ("not a readable Parquet file",)),
        ("without rows", parquet([], None), ("is empty",)),
        ("with a null", parquet(with_line(post(1, post=None))), ("row 2", "'post' is null")),
        ("of numbers", parquet([{"post": n, "summary": "x"} for n in range(9)]), ("row 1", "int")),
        ("of lists", parquet([{"post": ["a"], "summary": "x"}] * 9), ("row 1", "is list")),
        ("of bytes", parquet([{"post": b"a", "summary": "x"}] * 9), ("row 1", "is bytes")),
        ("of other columns", parquet([{"a": "b"}] * 9), ("row 1", "Rename columns")),
        ("of texts that are none", not_text, ("not a readable Parquet file",)),
    )
]

TEMPLATES = [
    Case(
        f"template: {template}",
        (*run_on(PATH), *sets(f"data.template='{template}'", *more)),
        says,
        jsonl(PATH, POSTS),
    )
    for template, more, says in (
        ("{post", (), ("data.template", "a literal brace")),
        ("{}", (), ("data.template", "write names only")),
        ("{post.upper}", (), ("data.template", "write names only")),
        ("{post!r}", (), ("data.template", "write names only")),
        ("{post:>9}", (), ("data.template", "write names only")),
        ("{body}", (), ("no field 'body'", "add it")),
        ("none", (), ("data.template", "{post}")),
        ("{post}", ("data.cut_field=title",), ("data.cut_field='title'", "name one of post")),
        ("{summary}", (), ("no column with the reference text",)),
    )
]


def pairs(name: str, line: Any, *says: str, rows: list[Any] | None = None) -> Case:
    """Good comparisons but for line 2."""
    return Case(
        f"comparisons: {name}",
        (
            *("run", "toy:tiny", *sets(f"data={PATH}", "data.comparisons.data=pairs.jsonl")),
            *(*LABELLED, "--out", "out"),
        ),
        ("pairs.jsonl", *says),
        both(jsonl(PATH, POSTS), jsonl("pairs.jsonl", rows or with_line(line, PAIRS))),
    )


SIDES = pair(1)["summaries"]
PREFERENCE = {"prompt": "Q:", "chosen": "a", "rejected": "b"}
COMPARISONS = [
    pairs("choice is 2", pair(1, choice=2), "line 2: field 'choice' is 2", "mend"),
    pairs("choice is -1", pair(1, choice=-1), "'choice' is -1"),
    pairs("choice is true", pair(1, choice=True), "'choice' is True"),
    pairs("choice is text", pair(1, choice="0"), "'choice' is '0'"),
    pairs("choice is null", pair(1, choice=None), "'choice' is None"),
    pairs("choice is a list", pair(1, choice=[0]), "'choice' is [0]"),
    pairs("no choice", without(pair(1), "choice"), "'choice' is None"),
    pairs("no info", without(pair(1), "info"), "line 2: no field 'info'", "mend or remove"),
    pairs("info is text", pair(1, info="x"), "no field 'info'"),
    pairs("no summaries", without(pair(1), "summaries"), "no field 'summaries'"),
    pairs("one summary", pair(1, summaries=SIDES[:1]), "'summaries' must hold two"),
    pairs("three summaries", pair(1, summaries=[*SIDES, SIDES[0]]), "must hold two"),
    pairs("summaries are texts", pair(1, summaries=["a", "b"]), "must hold two objects"),
    pairs("summaries are an object", pair(1, summaries={"a": 1}), "no field 'summaries'"),
    pairs(
        "a text is null", pair(1, summaries=[SIDES[0], {"text": None}]), "summaries[1]", "is null"
    ),
    pairs("a side without text", pair(1, summaries=[{}, SIDES[0]]), "summaries[0]", "no field"),
    pairs(
        "a policy is a list",
        pair(1, summaries=[SIDES[0], {"text": "a", "policy": ["x"]}]),
        "field 'policy' is list",
    ),
    pairs("the post is null", pair(1, info={"post": None, "title": "", "subreddit": ""}), "null"),
    pairs("extra is a list", pair(1, extra=[1]), "field 'extra' is list", "mend"),
    pairs("confidence is text", pair(1, extra={"confidence": "high"}), "'extra.confidence'"),
    pairs("a margin of text", pair(1, margin="large"), "line 2: field 'margin' is 'large'"),
    pairs("a margin of infinity", pair(1, margin=float("inf")), "'margin' is inf", "finite"),
    pairs("confidence is true", pair(1, extra={"confidence": True}), "'extra.confidence'"),
    pairs("the worker is an object", pair(1, worker={"a": 1}), "field 'worker' is dict"),
    pairs("the batch is a list", pair(1, batch=[1]), "field 'batch' is list"),
    pairs("no such split", pair(1, split="dev2"), "split 'dev2' is unknown", "expected one of"),
    pairs("the split is a number", pair(1, split=1.5), "field 'split' is float"),
    pairs("neither schema", {"prompt": "a", "chosen": "b"}, "line 2", "Rename columns"),
    pairs("chosen is null", {**PREFERENCE, "chosen": None}, "field 'chosen' is null"),
    pairs("rejected is empty", {**PREFERENCE, "rejected": " "}, "field 'rejected' is empty"),
    pairs("the prompt is a list", {**PREFERENCE, "prompt": ["x"]}, "field 'prompt' is list"),
    pairs("no shared prompt", {"chosen": "a", "rejected": "b"}, "share no prompt", "give a column"),
    pairs("broken JSON", "{", "line 2: not valid JSON"),
    pairs("none to train on", None, "some split=train", rows=[pair(1, split="valid1")] * 3),
    pairs("one", None, "1 different posts", rows=PAIRS[:1]),
    pairs("no rows", None, "is empty", rows=["\n"]),
]

CHAT = sets("data=talks.jsonl", "data.format=chat", "data.truncation=history")
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def talk(name: str, line: Any, *says: str) -> Case:
    """Conversations of which the one on line 2 is another."""
    rows = [{"messages": TURNS}, line, {"messages": TURNS}]
    command = ("run", "toy:tiny", *CHAT, *OWN, "--out", "out")
    make = jsonl("talks.jsonl", rows)
    return Case(f"conversations: {name}", command, ("talks.jsonl, line 2", *says), make)


def turn(**changed: Any) -> dict[str, Any]:
    """The second turn, changed."""
    return {"messages": [TURNS[0], {**TURNS[1], **changed}]}


CONVERSATIONS = [
    talk("messages is a text", {"messages": "Why?"}, "field 'messages' is str", "{role, content}"),
    talk("messages is null", {"messages": None}, "field 'messages' is null"),
    talk("no messages", {"messages": []}, "no turn of a user", "mend or remove"),
    talk("a turn is a text", {"messages": ["Why?", "So."]}, "'messages[0]' is str"),
    talk("a turn without a role", {"messages": [{"content": "a"}]}, "no field 'messages[0].role'"),
    talk("content is null", turn(content=None), "'messages[1].content' is null, expected text"),
    talk("content is a list", turn(content=["a"]), "'messages[1].content' is list"),
    talk("an unknown role", turn(role="tool"), "'tool', expected one of system, user, assistant"),
    talk("an empty turn", turn(content=" "), "turn 2 (assistant) is empty", "data.faulty=drop"),
    talk("two users", turn(role="user"), "user after user", "alternate"),
    talk("an odd number", {"messages": TURNS[:1]}, "an odd number"),
    talk("the user last", {"messages": TURNS[::-1]}, "the last turn is the user's"),
    talk("a post", post(1), "are no conversation", "accepted are: messages", "data.format=text"),
    Case(
        "conversations: no template",
        ("run", "toy:tiny", *CHAT, *OWN, "--out", "out"),
        ("no chat template", "data.chat_template=PATH"),
        jsonl("talks.jsonl", [{"prompt": f"Why {n}?", "completion": "So."} for n in range(30)]),
    ),
]

LOOP = sets("online={prompts_data: prompts.jsonl, prompts: 2, response_length: 48}")


def asked(name: str, line: Any, *says: str) -> Case:
    """The online loop's own prompts, of which the one on line 2 is another."""
    command = ("iterate", "toy:tiny", *LOOP, "--out", "out")
    make = jsonl("prompts.jsonl", [{"prompt": "Why?"}, line, {"prompt": "Who?"}])
    return Case(f"prompts: {name}", command, ("prompts.jsonl, line 2", *says), make)


ASKED = [
    asked("broken JSON", "{", "not valid JSON"),
    asked("another column", {"question": "a"}, "no field 'prompt'", "add it or remove the row"),
    asked("a number", {"prompt": 3}, "field 'prompt' is int"),
    asked("empty", {"prompt": " "}, "field 'prompt' is empty"),
    Case(
        "prompts: no rows",
        ("iterate", "toy:tiny", *LOOP, "--out", "out"),
        ("prompts.jsonl", "is empty"),
        jsonl("prompts.jsonl", ["\n"]),
    ),
]

GRID = ("ablate", "F7", "--recipe", "toy:tiny", "--seeds", "1", "--jobs", "1", "--out", "g")
SCALE = ("scale", "--sizes", "0.3M", "--seeds", "1", "--jobs", "1", "--out", "g")
GRIDS = [
    Case(
        f"{command[0]}: {name}",
        (*command, *sets(f"data={PATH}"), *OWN),
        says,
        jsonl(PATH, rows),
    )
    for command in (GRID, SCALE)
    for name, rows, says in (
        ("broken JSON", with_line("{"), (PATH, "line 2: not valid JSON")),
        ("post is null", with_line(post(1, post=None)), (PATH, "line 2", "is null")),
        ("one row", POSTS[:1], (PATH, "give more rows")),
        ("no rows", ["\n"], (PATH, "is empty")),
    )
]

CASES = [*LINES, *FILES, *PARQUET, *TEMPLATES, *COMPARISONS, *CONVERSATIONS, *ASKED, *GRIDS]

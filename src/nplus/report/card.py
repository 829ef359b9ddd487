"""Model cards: a README.md beside the weights of every stage that trains a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from nplus.report.collect import RunView, StageView, collect, number
from nplus.report.tables import (
    headline_rows,
    nats,
    percent,
    plain,
    reward_line,
    sentences,
    span,
)
from nplus.runs import RunRoot

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
TAGS = {
    "pretrain": ("pretraining", "text-generation"),
    "sft": ("sft", "text-generation", "summarization"),
    "reward": ("reward-model", "rlhf", "text-classification"),
    "ppo": ("ppo", "rlhf", "text-generation", "summarization"),
    "reinforce": ("reinforce", "rlhf", "text-generation", "summarization"),
    "online_dpo": ("dpo", "rlhf", "text-generation", "summarization"),
    "dpo": ("dpo", "rlhf", "text-generation", "summarization"),
}
WHAT = {
    "pretrain": "A small language model trained from scratch on the run's own texts.",
    "sft": "A summarisation policy fine-tuned on demonstrations.",
    "reward": "A Bradley-Terry reward model: one number per post and summary, higher is better.",
    "ppo": "A summarisation policy trained by PPO against a reward model, from the SFT policy.",
    "reinforce": "A summarisation policy trained by policy gradients against a reward model, from "
    "the SFT policy.",
    "online_dpo": "A summarisation policy trained by DPO on its own best and worst responses.",
    "dpo": "A summarisation policy trained by DPO on comparisons, from the SFT policy.",
}
CHAT_WHAT = {
    "sft": "A policy fine-tuned on the assistant's turns of conversations.",
    "reward": "A Bradley-Terry reward model: one number for the last turn of a conversation, "
    "higher is better.",
    "ppo": "A policy trained on conversations by PPO against a reward model, from the SFT policy.",
    "dpo": "A policy trained by DPO on pairs of conversations, from the SFT policy.",
}
QUERY = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
EXAMPLE = QUERY.format(
    subreddit="tifu", title="my roommate sold my bike", post="last week my roommate sold my bike."
)
CHAT_QUERY = """turns = [{"role": "user", "content": "Why is the sky blue?"}]
query = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)"""
"""The template writes what BOS there is: the text is tokenised with nothing added."""
GENERATE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{query}
tokens = tokenizer(query, return_tensors="pt", add_special_tokens=False)
out = model.generate(**tokens, max_new_tokens={length}, do_sample=True, temperature=0.7)
print(tokenizer.decode(out[0, tokens["input_ids"].shape[1]:], skip_special_tokens=True))
```"""
SCORE = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
{query}
text = query + {response!r} + tokenizer.eos_token
tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    score = model(**tokens).logits[0, 0].item() - getattr(model.config, "nplus_reward_shift", 0.0)
```

Score one text at a time, or pad with the tokenizer's PAD: the score is read at the last real token,
which has to be the EOS."""
SHIFT = """Scores are shifted so that training demonstrations average 0{by}. Where the network's
final norm has a bias, the shift is folded into it and plain transformers returns shifted scores;
elsewhere it stands in `config.json` as `nplus_reward_shift`, to be subtracted. A constant shift
changes no comparison; scores of different reward models are not on one scale."""


def write_cards(root: RunRoot) -> list[Path]:
    """Write the card of every finished model of the run; a card that is unchanged is left alone."""
    run = collect(root)
    cards = []
    for name, stage in run.stages.items():
        folder = stage.path / "model"
        if name not in TAGS or stage.status != "complete" or not folder.is_dir():
            continue
        card = folder / "README.md"
        text = card_text(run, stage)
        if not card.is_file() or card.read_text(encoding="utf-8") != text:
            aside = card.with_name(f".{card.name}.{os.getpid()}.tmp")
            aside.write_text(text, encoding="utf-8")
            aside.replace(card)
        cards.append(card)
    return cards


def card_text(run: RunView, stage: StageView) -> str:
    """The whole card as markdown with a YAML front matter."""
    parts = [
        *_front(run, stage),
        f"# {words(run.recipe)}, {words(stage.name)}",
        (CHAT_WHAT if _of_chat(run) else WHAT)[stage.name],
        "## Figures measured in this run",
        "\n".join(_figures(run, stage)) or "None: the run has no evaluation yet.",
        "## Data",
        _data(run),
        "## How it was trained",
        _training(run, stage),
        "## Use and limits",
        _limits(run, stage),
        "## Load it",
        _loading(run, stage),
    ]
    return "\n\n".join(parts) + "\n"


def words(text: Any) -> str:
    """Text of the run as Markdown shows it: no tag, no link, no new line, no cell of a table."""
    flat = " ".join(escape(str(text), quote=False).split())
    return re.sub(r"([\\`\[\]|])", r"\\\1", flat)


def tagless(sentence: str) -> str:
    """A sentence with intervals in brackets, which stay: no tag, no link, no new line."""
    flat = " ".join(escape(sentence, quote=False).split())
    return flat.replace("](", "] (").replace("`", "'")


def code(text: Any) -> str:
    """Text of the run as a code span, which it cannot end."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def base_model(config: Mapping[str, Any]) -> str:
    """The hub name of the base model; empty for a toy model and for a local directory."""
    model = config.get("model") or {}
    name = str(model.get("model_name_or_path") or "")
    if model.get("size"):
        return ""
    if name == "smollm":
        return SMOLLM
    hub = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) and not Path(name).exists()
    return name if hub else ""


def _front(run: RunView, stage: StageView) -> Iterator[str]:
    kind = "text-classification" if stage.name == "reward" else "text-generation"
    lines = ["---", "license: apache-2.0", "library_name: transformers", f"pipeline_tag: {kind}"]
    if base := base_model(run.config):
        lines.append(f'base_model: "{base}"')
    tags = [tag for tag in TAGS[stage.name] if tag != "summarization" or not _of_chat(run)]
    lines += ["tags:", *(f"- {tag}" for tag in ("nplus", *tags)), "---"]
    yield "\n".join(lines)


def _figures(run: RunView, stage: StageView) -> Iterator[str]:
    if stage.name == "reward":
        yield from (f"- {tagless(line)}" for line in filter(None, [reward_line(run.evaluation)]))
    else:
        yield from _policy_figures(run, stage.name)
    copy = number(stage.results.get("copy_accuracy"))
    if copy is not None:
        yield f"- Facts copied correctly from the post, greedy, validation posts: {percent(copy)}."
    for metric, what in (("loss/train", "Training loss"), ("objective/kl", "KL from SFT, nats")):
        if curve := stage.curves.get(metric):
            steps = curve.steps[-1]
            yield f"- {what}, mean of the last tenth of {steps:,} steps: {curve.tail():.3f}."


def _policy_figures(run: RunView, policy: str) -> Iterator[str]:
    rows = [r for r in run.evaluation.get("systems") or () if r.get("policy") == policy]
    if rows:
        yield "| posts | temperature | n | score | tokens | ended | KL from SFT | ROUGE-L |"
        yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        yield (
            f"| {words(r.get('split'))} | {words(r.get('temperature'))} | {plain(r.get('n'), 0)} "
            f"| {plain(r.get('score'), 3)} | {plain(r.get('tokens'))} "
            f"| {percent(r.get('eos_rate'))} | {nats(r.get('kl'))} "
            f"| {plain(r.get('rougeL'), 3)} |"
        )
    if rows:
        yield ""
    if policy == "ppo":
        yield from (f"- {tagless(line)}" for line in sentences(run))
        return
    for r in headline_rows(run.evaluation):
        if r.get("policy") == policy:
            yield (
                f"- Against the {words(r.get('opponent'))}, temperature "
                f"{words(r.get('temperature'))}: {span(r)}."
            )


def _data(run: RunView) -> str:
    data = run.config.get("data") or {}
    if data.get("source") == "world":
        return (
            "The embedded synthetic TL;DR world of nplus: posts written by a program from hidden "
            "fact sheets, with references, simulated labellers and a gold scorer that knows the "
            "facts. English, no real people."
        )
    name = Path(str(data.get("data") or "")).name or "not recorded"
    text = f"The user's own data set, {code(name)}. Its licence and contents are its owner's."
    template = data.get("template")
    return f"{text}\n\nQuery template: {code(repr(template))}" if template else text


def _training(run: RunView, stage: StageView) -> str:
    manifest = stage.manifest
    base = base_model(run.config)
    size = (run.config.get("model") or {}).get("size")
    toy = f"a GPT-NeoX of about {words(size)} parameters" if size else ""
    origin = f"from `{base}`" if base else toy
    head = f"Recipe {code(run.recipe)}, stage {code(stage.name)}"
    lines = [head + (f", {origin}." if origin else ".")]
    if base:
        lines.append("The base model's licence applies to what is derived from it.")
    if manifest:
        lines.append(
            f"Seed {manifest.seed}, {plain(manifest.seconds, 0)} s on {words(manifest.device)}, "
            f"nplus {words(manifest.packages.get('nplus', ''))} "
            f"(code {words(manifest.code_version)}), "
            f"torch {words(manifest.packages.get('torch', ''))}, "
            f"transformers {words(manifest.packages.get('transformers', ''))}."
        )
        lines.append(f"Key of the stage: {code(manifest.key)}.")
    return " ".join(lines)


def _limits(run: RunView, stage: StageView) -> str:
    lines = []
    if stage.name == "reward":
        shift = number(stage.results.get("shift"))
        lines.append(SHIFT.format(by="" if shift is None else f" (by {shift:.4f})"))
        lines.append(
            "Meant for texts like those it was trained on. Optimising against it without a KL "
            "penalty finds its mistakes."
        )
    elif _of_chat(run):
        lines.append(
            "For research on RLHF: answers in conversations under the tokenizer's own chat "
            "template. It may state what is not so; check before relying on it."
        )
    else:
        lines.append(
            "For research on RLHF: summaries of posts in the template below. It may state things "
            "the post does not say; check before relying on it."
        )
    if (run.config.get("data") or {}).get("source") == "world":
        lines.append("It knows only the synthetic world's posts and is of no use on real text.")
    return "\n\n".join(lines)


def _loading(run: RunView, stage: StageView) -> str:
    length = (run.config.get("evaluate") or {}).get("response_length") or 53
    text = SCORE if stage.name == "reward" else GENERATE
    query, response = f"query = {EXAMPLE!r}", " my roommate sold my bike."
    if _of_chat(run):
        query, response = CHAT_QUERY, "Air scatters blue light most."
    return text.format(query=query, response=response, length=length)


def _of_chat(run: RunView) -> bool:
    return (run.config.get("data") or {}).get("format") == "chat"

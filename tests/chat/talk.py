"""A tokenizer with a template in the manner of SmolLM2, conversations, and a small run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nplus.config import DataConfig, RunConfig
from nplus.recipes import recipe

SYSTEM = "You are a helpful machine."
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's template with its default system turn, and marks of what the assistant says."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "[INST]", "[/INST]", "</s>")

Row = dict[str, Any]


def make_tokenizer(template: str | None = CHATML, **special: Any) -> PreTrainedTokenizerFast:
    """Byte-level without merges; the special tokens come first, and PAD is EOS as in SmolLM2."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.add_special_tokens([*SPECIAL])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if special.pop("adds_bos", False):
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", names.index("<s>"))]
        )
    options = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **(options | special))
    made.chat_template = template
    return made


def turns(*texts: str, system: str | None = None) -> list[Row]:
    """User and assistant in turn."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def chat_config(**changed: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"source": "files", "data": "rows.jsonl", "format": "chat", "truncation": "history"}
        | changed
    )


TOPICS = ("tea", "boats", "rain", "lamps", "cats", "maps", "bread", "trains")


def messages(count: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        said = (f"{n}: {topic}?", f"{topic} is good.", "More?", f"No {topic}.")
        rows.append({"id": str(n), "messages": turns(*said[: 2 + 2 * (n % 2)])})
    return rows


def pairs(count: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        said = (f"{n}: {topic}?", f"{topic} is good.", "More?")[: 1 + 2 * (n % 2)]
        chosen, rejected = turns(*said, f"Yes, {topic}."), turns(*said, "no")
        rows.append({"id": f"p{n}", "chosen": chosen, "rejected": rejected})
    return rows


def changed(tree: dict[str, Any], **parts: Any) -> RunConfig:
    def merge(into: dict[str, Any], given: dict[str, Any]) -> None:
        for key, value in given.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(tree, parts)
    return RunConfig.model_validate(tree)


def small(model: str, rows: Path, compared: Path, **parts: Any) -> RunConfig:
    """The road of seconds: SFT and DPO on files of conversations."""
    batch = {"batch": {"batch_size": 8, "micro_batch_size": 4}}
    config = changed(
        recipe("chat:dpo").model_dump(),
        data={"data": str(rows), "max_query_tokens": 150, "max_response_tokens": 24}
        | {"comparisons": {"data": str(compared), "max_response_tokens": 24}},
        model={"model_name_or_path": model},
        compute={"matmul_precision": "highest", "autocast": "none"},
        sft=batch,
        reward=batch | {"normalise_rows": 8},
        dpo=batch,
        ppo={"total_episodes": 8, "batch_size": 4, "micro_batch_size": 2}
        | {"rollout_micro_batch_size": 4, "sampling": {"response_length": 24}},
        evaluate={"response_length": 24, "max_rows": 4},
    )
    return changed(config.model_dump(), **parts)

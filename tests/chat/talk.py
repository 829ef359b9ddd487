"""A tokenizer with a template in the manner of SmolLM2, and conversations, written here."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nplus.config import DataConfig

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

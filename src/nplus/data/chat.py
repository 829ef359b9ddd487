"""A tokenizer's chat template: messages to the one text that a model reads.

The template is rendered once, whole; what it writes of BOS, default system turns and role markers
is all there is. A prompt ends where the assistant begins to speak, so that training and sampling
see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from nplus.data.conversations import Message, Messages
from nplus.records import InputError, RowError

PROBE = (Message("user", "Ask?"), Message("assistant", "Answer."))
"""What a template is tried on."""
TEMPLATES = {
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{% endif %}"
    )
}
"""Templates that `data.chat_template` knows by name, for base models whose tokenizer has the
special tokens but no template: Llama 3's format, as its model card describes it."""
Span = tuple[int, int]
"""The first character of an assistant's turn in a text, and the one after its end-of-turn."""


@dataclass(frozen=True)
class ChatFormat:
    """What a template makes of a conversation.

    Between the prompt and the assistant's text it writes `before`, behind that text `after`, and
    then `end`, the special token at which a response ends and generation stops. What a template
    writes after `end` (SmolLM2: a newline) belongs to the turn that follows.
    """

    tokenizer: Any
    before: str
    after: str
    end: str

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The format of a tokenizer's own template.

        InputError where it has none, and where the template does not tell how a turn ends.
        """
        name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise InputError(
                f"tokenizer {name!r} has no chat template; name a file with one in "
                "data.chat_template=PATH, or take an instruct model"
            )
        prompt = _rendered(tokenizer, PROBE[:1], prompt=True)
        whole = _rendered(tokenizer, PROBE, prompt=False)
        if not whole.startswith(prompt):
            raise InputError(
                f"the chat template of {name!r} writes a prompt, {prompt[-40:]!r}, that is not the "
                f"beginning of the whole conversation, {whole[-60:]!r}: a policy would be trained "
                "on other text than it is asked with; mend it in data.chat_template=PATH"
            )
        before, text, behind = whole[len(prompt) :].partition(PROBE[1].content)
        if not text:
            raise InputError(
                f"the chat template of {name!r} does not write the assistant's text as it is "
                f"({whole[len(prompt) :][:60]!r}); name another in data.chat_template=PATH"
            )
        after = behind[: len(behind) - len(behind.lstrip())]
        specials = [s for s in _specials(tokenizer) if behind[len(after) :].startswith(s)]
        if not specials:
            raise InputError(
                f"the chat template of {name!r} ends the assistant's turn with {behind[:40]!r}, "
                "which begins with no special token: what ends a response cannot be told. Name a "
                "template that writes one, as <|im_end|>, in data.chat_template=PATH"
            )
        return cls(tokenizer, before, after, max(specials, key=len))

    @cached_property
    def end_id(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that no text is read as."""
        return frozenset(self.tokenizer.convert_tokens_to_ids([*self._markers]))

    @cached_property
    def _markers(self) -> tuple[str, ...]:
        return _specials(self.tokenizer)

    def response_text(self, text: str) -> str:
        """A response as it stands behind its prompt, without `end`."""
        return f"{self.before}{text.strip()}{self.after}"

    def prompt(self, messages: Sequence[Message], where: str = "conversation") -> str:
        """The text up to where the assistant begins to speak.

        RowError for messages that the template refuses or that spell a special token: the
        template's text would hold it as one.
        """
        self._require_plain(messages, where)
        return self._render(messages, where, prompt=True)

    def whole(self, messages: Sequence[Message], response: str, where: str = "conversation") -> str:
        """`prompt` and the assistant's response through `end`, of one rendering.

        RowError where the template does not begin that text as it writes the prompt alone.
        """
        last = Message("assistant", response.strip())
        self._require_plain((last,), where)
        expected = self.prompt(messages, where) + self.response_text(response) + self.end
        found = self._render((*messages, last), where, prompt=False)
        if not found.startswith(expected):
            raise _rewritten(where, "the last turn", expected, found)
        return expected

    def turns(self, messages: Sequence[Message], where: str = "conversation") -> tuple[Span, ...]:
        """Where the assistant's turns stand in `prompt(messages)`, each with its `end`.

        By rendering up to every turn; RowError where a template writes an earlier turn otherwise
        once more turns follow.
        """
        found, text = [], self.prompt(messages, where)
        for at, turn in enumerate(messages):
            if turn.role != "assistant":
                continue
            begun = self._render(messages[:at], where, prompt=True)
            ended = begun + self.response_text(turn.content) + self.end
            if not text.startswith(ended):
                raise _rewritten(where, f"turn {at + 1}", ended, text)
            found.append((len(begun), len(ended)))
        return tuple(found)

    def _render(self, messages: Sequence[Message], where: str, *, prompt: bool) -> str:
        try:
            return _rendered(self.tokenizer, messages, prompt=prompt)
        except InputError as error:
            raise RowError(f"{where}: {error}", "template_refuses") from error

    def _require_plain(self, messages: Sequence[Message], where: str) -> None:
        for at, turn in enumerate(messages):
            spelled = [marker for marker in self._markers if marker in turn.content]
            if spelled:
                raise RowError(
                    f"{where}: turn {at + 1} ({turn.role}) spells the special token "
                    f"{spelled[0]!r}, which would end or begin a turn inside it; remove it from "
                    "the text, or set data.faulty=drop",
                    "special_in_turn",
                )


def read_template(path: str | Path) -> str:
    """The text of a template known by name, or of a file; InputError where it cannot be read."""
    if str(path) in TEMPLATES:
        return TEMPLATES[str(path)]
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"data.chat_template={path}: cannot read it ({reason}); name a file with a Jinja "
            f"template, or one of {', '.join(TEMPLATES)}"
        ) from error
    if not text.strip():
        raise InputError(f"data.chat_template={path}: the file is empty; write a Jinja template")
    return text


def _rendered(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    turns = [turn._asdict() for turn in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template may refuse what it likes, by any of Jinja's errors
        if type(error).__module__.split(".")[0] not in ("jinja2", "builtins"):
            raise
        told = " ".join(str(error).split())[:200]
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} refuses this conversation ({told}); "
            "mend or remove it, or name another template in data.chat_template=PATH"
        ) from error
    return str(text)


def _specials(tokenizer: Any) -> tuple[str, ...]:
    added = tokenizer.added_tokens_decoder.values()
    known = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    return tuple(sorted(known))


def _rewritten(where: str, what: str, expected: str, found: str) -> RowError:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found)
    )
    span = slice(max(0, at - 15), at + 25)
    return RowError(
        f"{where}: the chat template writes {what} otherwise in the whole conversation than as a "
        f"prompt ({expected[span]!r} against {found[span]!r}), so that a policy would be trained "
        "on other text than it is asked with; mend it in data.chat_template=PATH",
        "template_rewrites",
    )


__all__ = ["ChatFormat", "Messages", "Span", "read_template"]

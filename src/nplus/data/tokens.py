"""Text to token ids and back, with one EOS, one PAD of its own and no BOS (Details A5 to A8)."""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nplus.config.data import DataConfig, TokenizerConfig
from nplus.data.chat import ChatFormat, Span, read_template
from nplus.records import InputError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "[PAD]"


def response_text(text: str, *, leading_space: bool = True) -> str:
    """Detail A6: exactly one space, then the text; an empty response stays empty."""
    stripped = text.strip()
    return f" {stripped}" if stripped and leading_space else stripped


@dataclass(frozen=True, slots=True)
class TextRules:
    """How texts become sequences, where details can be switched; the defaults are the paper's."""

    leading_space: bool = True
    """Detail A6."""
    join: str = "ids"
    """Detail A5: `ids`, or `text` as in the paper's code."""
    spaces_to: int | None = None
    """Detail A4: pad queries with attended spaces to this width; None pads with masked PAD."""
    cut_to: int | None = None
    """Detail A8: cut responses to this many tokens, EOS and all; None never cuts."""
    distinct_pad: bool = True
    """Detail A7."""
    chat: bool = False
    """Queries are rendered conversations, whose special tokens are tokens."""

    @classmethod
    def of(cls, data: DataConfig, tokenizer: TokenizerConfig) -> Self:
        """The rules of a run's configuration."""
        return cls(
            leading_space=data.leading_space,
            join=data.join,
            spaces_to=data.max_query_tokens if data.query_padding == "spaces" else None,
            cut_to=data.max_response_tokens if data.overlong == "cut" else None,
            distinct_pad=tokenizer.distinct_pad,
            chat=data.format == "chat",
        )


class Codec:
    """A tokenizer as the project uses it: nothing added to a text, markers in a text are text.

    `eos_id` ends every response and `pad_id` differs from it (Detail A7). The given tokenizer gets
    a PAD token if it has none of its own. `rules` hold what can be switched.
    """

    rules: TextRules = TextRules()
    chat: ChatFormat | None = None
    """The chat template, under the rule `chat`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, pad_token: str = PAD_TOKEN) -> None:
        """InputError for a tokenizer without EOS, or one that reads EOS out of plain text."""
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response could end; "
                "set eos_token in its tokenizer_config.json"
            )
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            # Detail A7: with PAD = EOS every EOS would be masked and no model would learn to stop.
            if pad_token == tokenizer.eos_token:
                raise InputError(
                    f"tokenizer.pad_token={pad_token!r} is the EOS token; name another, or set "
                    "tokenizer.distinct_pad=false to see what that does"
                )
            tokenizer.add_special_tokens({"pad_token": pad_token})
        self.tokenizer = tokenizer
        self.eos_id: int = int(tokenizer.eos_token_id)
        self.pad_id: int = int(tokenizer.pad_token_id)
        marker = f"a {tokenizer.eos_token} {tokenizer.pad_token} b"
        if {self.eos_id, self.pad_id} & set(self.encode(marker)):
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} turns {tokenizer.eos_token!r} inside a text "
                "into the EOS token; mark EOS and PAD as special tokens in its tokenizer.json"
            )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        pad_token: str = PAD_TOKEN,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> Codec:
        """The tokenizer of a directory or hub name; InputError when there is none."""
        is_path = (
            isinstance(source, Path) or Path(source).is_absolute() or str(source).startswith(".")
        )
        if is_path and not Path(source).is_dir():
            raise InputError(f"{source}: no such tokenizer directory")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(source), trust_remote_code=trust_remote_code, revision=revision
            )
        # The library behind it, written in Rust, raises nothing more special.
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise InputError(
                    f"{source}: its tokenizer comes with code of its own, which nplus does not "
                    "run; set model.trust_remote_code=true if you trust its author"
                ) from error
            raise InputError(
                f"{source}: no tokenizer could be loaded from there ({_first_line(error)}); name a "
                "directory with tokenizer.json, or a hub name that can be reached"
            ) from error
        if len(tokenizer) < 3:  # made of nothing, where no file says more
            raise InputError(
                f"{source}: its tokenizer has no vocabulary; name a directory with tokenizer.json"
            )
        return cls(tokenizer, pad_token=pad_token)

    def with_rules(self, rules: TextRules) -> Self:
        """The same tokenizer under other rules; without a distinct PAD, PAD is EOS."""
        other = copy.copy(self)
        other.rules = rules
        other.pad_id = int(self.tokenizer.pad_token_id) if rules.distinct_pad else self.eos_id
        other.chat = ChatFormat.of(self.tokenizer) if rules.chat else None
        return other

    def for_data(self, data: DataConfig, pad_token: str = PAD_TOKEN) -> Codec:
        """The tokenizer for the rows of `data`: for conversations, EOS is what ends a turn.

        A base model's EOS may be another token than the one its chat template writes, at which
        generation has to stop. InputError for a template that does not tell.
        """
        if data.format == "text":
            return self
        tokenizer = copy.deepcopy(self.tokenizer)
        if data.chat_template is not None:
            tokenizer.chat_template = read_template(data.chat_template)
        tokenizer.eos_token = ChatFormat.of(tokenizer).end
        return Codec(tokenizer, pad_token=pad_token).with_rules(TextRules(chat=True))

    def save(self, path: str | Path) -> None:
        """Write a directory that `load` and transformers read."""
        self.tokenizer.save_pretrained(str(path))

    @property
    def size(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self.tokenizer)

    @property
    def required_rows(self) -> int:
        """Rows an embedding needs for every id; PAD often fits into rows a model has to spare."""
        return max(max(self.tokenizer.get_vocab().values()), self.eos_id, self.pad_id) + 1

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text: no special token is added, and none is read out of the text.

        A text that stands there again is encoded once, and its list of ids too stands there again.
        """
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))
        ids: list[list[int]] = self.tokenizer(
            distinct,
            add_special_tokens=False,
            # A post holding "<|endoftext|>" must not end: the marker is spelled out in pieces.
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        found = dict(zip(distinct, ids, strict=True))
        return [found[text] for text in texts]

    def encode(self, text: str) -> list[int]:
        """Ids of one text, as `encode_batch` gives them."""
        return self.encode_batch([text])[0]

    def encode_query(self, query: str) -> list[int]:
        """Ids of a query as it stands: a template's final newline belongs to it (Q9)."""
        return self.encode_queries([query])[0]

    def encode_queries(self, queries: Sequence[str]) -> list[list[int]]:
        """Ids of each query. Of a rendered conversation special tokens are read out of the text,
        and none is added: BOS stands there once, where the template writes it."""
        if self.chat is None:
            return self.encode_batch(queries)
        return [list(ids) for ids, _ in self._rendered(queries)]

    def _rendered(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        if not texts:
            return []
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return list(zip(found["input_ids"], found["offset_mapping"], strict=True))

    def encode_turns(self, query: str, turns: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Ids of a rendered conversation, and which of them are in `turns` (characters of it).

        InputError where a token reaches over the edge of a turn.
        """
        ids, places = self._rendered([query])[0]
        edges, inside = [edge for turn in turns for edge in turn], []
        for token, (first, last) in zip(ids, places, strict=True):
            passed = bisect_right(edges, first)
            if passed < len(edges) and edges[passed] < last:
                start = edges[passed - passed % 2]
                raise InputError(
                    f"token {self.tokenizer.decode([token])!r} reaches over the edge of the turn "
                    f"{query[start : start + 40]!r}: no loss can be of the turn alone; set "
                    "sft.loss_on=response, or mend the template in data.chat_template=PATH"
                )
            inside.append(passed % 2 == 1)
        return ids, inside

    def encode_response(self, text: str) -> list[int]:
        """Detail A6: one leading space, the stripped text, EOS."""
        return self.encode_responses([text])[0]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each response, EOS last."""
        return [
            self._ended(ids) for ids in self.encode_batch([self.response_text(t) for t in texts])
        ]

    def response_text(self, text: str) -> str:
        """A response as it stands behind a query: one leading space (Detail A6), or what the chat
        template has there."""
        if self.chat is not None:
            return self.chat.response_text(text)
        return response_text(text, leading_space=self.rules.leading_space)

    def _ended(self, ids: Sequence[int]) -> list[int]:
        return [*ids, self.eos_id][: self.rules.cut_to]

    def encode_pairs(
        self, queries: Sequence[str], responses: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Ids of each query and of its response with EOS.

        Detail A5: joined by ids, a query's own trailing newline survives (Q9), and the one space
        before the response makes that equal to tokenising the joined text. `join=text` does the
        latter with the query's outer spaces stripped, and splits where the query alone would end.
        """
        ids = self.encode_queries(queries)
        if self.rules.join == "ids":
            return list(zip(ids, self.encode_responses(responses), strict=True))
        joined = self.encode_batch(
            [q.strip() + self.response_text(r) for q, r in zip(queries, responses, strict=True)]
        )
        return [
            (whole[: len(query)], self._ended(whole[len(query) :]))
            for query, whole in zip(ids, joined, strict=True)
        ]

    @property
    def space_id(self) -> int:
        """The one token of a space (Detail A4); InputError where a space takes several."""
        ids = self.encode(" ")
        if len(ids) != 1:
            raise InputError(
                f"data.query_padding=spaces: this tokenizer writes a space as {len(ids)} tokens; "
                "set data.query_padding=pad"
            )
        return ids[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens, spaces as they are."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def decode_response(self, ids: Sequence[int]) -> str:
        """Text before the first EOS or PAD, without the leading space of Detail A6."""
        ends = (i for i, token in enumerate(ids) if token in (self.eos_id, self.pad_id))
        text = self.decode(ids[: next(ends, len(ids))]).lstrip()
        return text if self.chat is None else text.removeprefix(self.chat.before.strip()).strip()

    @property
    def splits_at_spaces(self) -> bool:
        """Whether every space after a non-space starts a new token, whatever follows.

        True for byte-level tokenizers with GPT-2's pattern (GPT-2, Pythia, SmolLM, `train_bpe`);
        False where it is not known. Truncation is faster where it holds.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return False
        spec = json.loads(backend.to_str())
        added = [token["content"] for token in spec["added_tokens"] if not token["special"]]
        if any(re.search(r"\S ", text) for text in added):
            return False
        normalizer = spec["normalizer"]
        return _uses_gpt2_pattern(spec["pre_tokenizer"]) and (
            normalizer is None or normalizer["type"] == "NFC"
        )


def _uses_gpt2_pattern(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(_uses_gpt2_pattern(p) for p in pre_tokenizer["pretokenizers"])
    return pre_tokenizer["type"] == "ByteLevel" and bool(pre_tokenizer.get("use_regex"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def train_bpe(texts: Iterable[str], vocab_size: int, pad_token: str = PAD_TOKEN) -> Codec:
    """A byte-level BPE of at most `vocab_size` tokens, EOS id 0, PAD id 1; it can write any text.

    Depends on the texts only, not on their order.
    """
    if pad_token == EOS_TOKEN:
        raise InputError(
            f"tokenizer.pad_token={pad_token!r} is the EOS token; name another, or set "
            "tokenizer.distinct_pad=false to see what that does"
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 2:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes, EOS and PAD need "
            f"{len(alphabet) + 2}"
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, pad_token],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(iter(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS_TOKEN, pad_token=pad_token
    )
    return Codec(tokenizer, pad_token=pad_token)

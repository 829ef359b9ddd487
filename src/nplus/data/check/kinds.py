"""What can be wrong with data: how bad it is, what it comes from, and the mend."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""`error`: a run refuses the data. `warning`: it takes it, and the result may suffer. `note`: it
takes it, and you may want to know."""


class Kind(NamedTuple):
    """One kind of finding. `of`: what its count is a share of."""

    severity: Severity
    of: str
    cause: str
    mend: str


_ROW = "mend or remove the row"
_TURN = "mend or remove the row, or set data.faulty=drop"
_SHORTEN = "raise the limit, shorten the text, or set data.overlong=drop"

KINDS: dict[str, Kind] = {
    # What the loaders refuse.
    "no_rows": Kind("error", "files", "the file holds no row", "write one JSON object a line"),
    "unreadable": Kind("error", "files", "the file cannot be read to its end", "write it again"),
    "row_count": Kind(
        "error", "files", "public data with other rows than were published", "fetch it again"
    ),
    "no_train": Kind(
        "error",
        "files",
        "a folder without a training split",
        "name one file train.jsonl or train.parquet",
    ),
    "not_utf8": Kind("error", "rows", "bytes that are not UTF-8", "save the file as UTF-8"),
    "half_character": Kind(
        "error",
        "rows",
        "half of a character: a \\u escape of a surrogate that stands alone",
        "write the character itself, or both halves",
    ),
    "broken_json": Kind("error", "rows", "a line that is not JSON", "write one JSON object a line"),
    "not_an_object": Kind(
        "error", "rows", "a line that is JSON, but no object", "write one JSON object a line"
    ),
    "unknown_columns": Kind(
        "error",
        "rows",
        "columns that match no known data",
        "rename columns, or name them in data.template; of conversations, set data.format=chat",
    ),
    "missing_field": Kind("error", "rows", "a column is missing", "add it or remove the row"),
    "wrong_type": Kind("error", "rows", "a column is not of its type", _ROW),
    "wrong_value": Kind("error", "rows", "a column has a value out of its range", _ROW),
    "empty_field": Kind(
        "error", "rows", "a column that must hold text is blank", "fill it in or remove the row"
    ),
    "no_shared_prompt": Kind(
        "error",
        "rows",
        "two dialogues that part before the assistant's last turn",
        "give a column 'prompt', or remove the row",
    ),
    # Of conversations; data.faulty=drop leaves such rows out.
    "unknown_role": Kind("error", "rows", "a turn of neither system, user nor assistant", _TURN),
    "empty_turn": Kind("error", "rows", "a turn without text", _TURN),
    "roles_alternate": Kind("error", "rows", "user and assistant do not speak in turn", _TURN),
    "odd_turns": Kind("error", "rows", "an odd number of turns of user and assistant", _TURN),
    "no_assistant_turn": Kind("error", "rows", "the assistant does not speak last", _TURN),
    "unequal_turns": Kind("error", "rows", "two conversations of unlike numbers of turns", _TURN),
    "history_differs": Kind(
        "error", "rows", "two conversations that part before the last turn", _TURN
    ),
    "special_in_turn": Kind(
        "error",
        "rows",
        "a turn spells a special token of the tokenizer: it would end or begin a turn",
        "remove it from the text, or set data.faulty=drop",
    ),
    "template_refuses": Kind(
        "error", "rows", "the chat template raises an error on this conversation", _TURN
    ),
    "template_rewrites": Kind(
        "error",
        "rows",
        "rendered or tokenised, the prompt does not begin the whole conversation",
        "mend the template in data.chat_template=PATH",
    ),
    "unknown_split": Kind(
        "error", "rows", "a split with an unknown name", "name it train, valid1 or valid2"
    ),
    "overlong_response": Kind(
        "error", "responses", "a response with EOS is over its limit (Detail A8)", _SHORTEN
    ),
    "overlong_length": Kind(
        "error", "rows", "query and response together are over their limit (Detail A8)", _SHORTEN
    ),
    "overlong_query": Kind(
        "error",
        "queries",
        "a query is over its limit, and what may be cut of it is not enough",
        "raise data.max_query_tokens, give the original columns, or set data.overlong=drop",
    ),
    # What a run takes, and may suffer from.
    "empty_response": Kind(
        "warning",
        "responses",
        "a compared response is empty: only its EOS is scored",
        "leave it if a policy wrote nothing; else remove the row",
    ),
    "identical_pair": Kind(
        "warning",
        "pairs",
        "both responses are the same text: nothing can be learned but noise",
        "remove the row",
    ),
    "tie": Kind(
        "warning",
        "pairs",
        "the label prefers neither: equal scores, or confidence 5 of 1 to 9",
        "remove the row",
    ),
    "conflicting_label": Kind(
        "warning",
        "pairs",
        "the same pair is labelled both ways",
        "keep the majority's label, or leave it as the noise of your labellers",
    ),
    "duplicate_row": Kind(
        "warning", "rows", "the same row stands there again: it counts twice", "remove it"
    ),
    "duplicate_id": Kind(
        "error",
        "rows",
        "one id names different texts: rows of one id are taken for one post",
        "give each post an id of its own, or drop the column",
    ),
    "leakage": Kind(
        "warning",
        "held-out rows",
        "a held-out prompt also stands in training data: its figures say too much",
        "remove it from one of the two",
    ),
    "eos_lost": Kind(
        "warning",
        "responses",
        "data.overlong=cut cuts the response and its EOS: it teaches not to stop (Detail A8)",
        "raise data.max_response_tokens, or set data.overlong=drop",
    ),
    "eos_text": Kind(
        "warning",
        "rows",
        "a text spells an end marker: it is read as plain text and ends nothing",
        "remove the marker; EOS is added to every response",
    ),
    "filtered_query": Kind(
        "warning",
        "queries",
        "a query is over data.max_query_tokens, and data.truncation=filter leaves it out",
        "raise data.max_query_tokens, or set data.truncation=paragraph (history of conversations)",
    ),
    "seam": Kind(
        "warning",
        "rows",
        "query and response tokenise otherwise together than apart (Detail A5)",
        "end the query with a character that no token shares with a space",
    ),
    "length_bias": Kind(
        "warning",
        "pairs",
        "labels go with length: a reward model can score by counting",
        "balance the pairs by length, and read the verdict at matched length",
    ),
    # What you may want to know.
    "duplicate_prompt": Kind(
        "note", "rows", "a prompt stands there again, with another response", "leave it if meant"
    ),
    "truncated_query": Kind(
        "note",
        "queries",
        "a query is over data.max_query_tokens and is cut (Detail A3)",
        "raise data.max_query_tokens, or leave it",
    ),
    "not_read": Kind(
        "note", "files", "a file of the folder that a run does not read", "name it after a split"
    ),
    "tokens_skipped": Kind(
        "note",
        "files",
        "no tokenizer: lengths are in characters, and limits and EOS are not checked",
        "name one with --tokenizer DIR",
    ),
}

"""Public datasets that are known by name, with the rows each split has (Detail A1)."""

from __future__ import annotations

_POSTS = {"train": 116_722, "valid": 6_447, "test": 6_553}
_PAIRS = {"train": 92_858, "valid": 83_802, "validation_cnndm": 2_284}

HUB_ROWS: dict[str, dict[str, int]] = {
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered": _POSTS,
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1706381144": _POSTS,
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1711138084": _POSTS,
    "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144": _PAIRS,
    "openai/summarize_from_feedback:comparisons": {
        "train": _PAIRS["train"],
        "valid": _PAIRS["valid"] + _PAIRS["validation_cnndm"],
    },
}
"""Rows by split, `valid` standing for `validation`; a configuration follows a colon."""

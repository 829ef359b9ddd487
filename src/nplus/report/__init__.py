"""What a finished (or unfinished) run shows: a page, a terminal table and model cards."""

from nplus.report.card import write_cards
from nplus.report.page import write_report
from nplus.report.tables import verdict

__all__ = ["verdict", "write_cards", "write_report"]

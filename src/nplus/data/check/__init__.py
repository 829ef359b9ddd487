"""The data contract: every row of a source looked at, every fault named; no torch, no writing."""

from nplus.data.check.report import one_line
from nplus.data.check.rows import Checker
from nplus.data.check.source import check_source

__all__ = ["Checker", "check_source", "one_line"]

"""What `nplus doctor` can find; no torch."""

from nplus.findings.kinds import KINDS, SEVERITIES, Kind, Severity, findings_markdown, kind_of
from nplus.findings.record import EVENT, Finding, by_severity, found, read_findings

__all__ = [
    "EVENT",
    "KINDS",
    "SEVERITIES",
    "Finding",
    "Kind",
    "Severity",
    "by_severity",
    "findings_markdown",
    "found",
    "kind_of",
    "read_findings",
]

"""What the doctor says about one subject, and how it is printed."""

from collections.abc import Iterable
from typing import NamedTuple

FINE, WRONG, NOTE, SKIPPED = "fine", "WRONG", "note", "not seen"


class Finding(NamedTuple):
    """One subject, what was seen, and for what is wrong the cure."""

    status: (
        str  # FINE; WRONG: something to mend; NOTE: worth knowing, nothing to mend; SKIPPED: could not be looked at
    )
    subject: str
    seen: str  # a short clause: "3.12.3"
    cure: str = ""  # what to type or to change


def fine(subject: str, seen: str) -> Finding:
    return Finding(FINE, subject, seen)


def wrong(subject: str, seen: str, cure: str) -> Finding:
    return Finding(WRONG, subject, seen, cure)


def note(subject: str, seen: str, cure: str = "") -> Finding:
    return Finding(NOTE, subject, seen, cure)


def skipped(subject: str, why: str) -> Finding:
    return Finding(SKIPPED, subject, why)


def print_findings(findings: Iterable[Finding]) -> int:
    """Print each as it comes. Returns the exit code: 1 where something is wrong, else 0."""
    number = 0
    for finding in findings:
        print(f"{finding.status:8}  {finding.subject:20}  {finding.seen}", flush=True)
        if finding.cure:
            print(f"{'':8}  {'':20}  -> {finding.cure}")
        number += finding.status == WRONG
    print("nothing is wrong" if not number else f"{number} thing{'s' * (number > 1)} to mend: see the arrows")
    return int(number > 0)

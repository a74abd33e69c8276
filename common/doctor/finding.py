"""What the doctor says about one subject, and how it is printed."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from common.grade.marking.messages import padded

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


def print_findings(findings: Iterable[Finding], say: Callable[[str], str] = str) -> int:
    """Print each as it comes. Returns the exit code: 1 where something is wrong, else 0. say: translates what is printed"""
    number = 0
    for finding in findings:
        print(f"{padded(say(finding.status), 8)}  {padded(say(finding.subject), 20)}  {say(finding.seen)}", flush=True)
        if finding.cure:
            print(f"{'':8}  {'':20}  -> {say(finding.cure)}")
        number += finding.status == WRONG
    found = f"{number} things to mend: see the arrows" if number > 1 else "1 thing to mend: see the arrow"
    print(say(found if number else "nothing is wrong"))
    return int(number > 0)

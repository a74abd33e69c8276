"""What is graded, within which limits, and what comes of it."""

import hashlib
from dataclasses import dataclass, field

TOTAL = 600.0  # time limit of a submission as a whole, in seconds


@dataclass(frozen=True)
class Work:
    """A submission to grade: the file with the answers, and the files beside it that it may import."""

    files: dict[str, bytes]
    main: str  # name of the file with the answers
    shown: str = ""  # its path as it appears in messages

    @property
    def sha256(self) -> str:
        """SHA-256 of the file with the answers."""
        return hashlib.sha256(self.files[self.main]).hexdigest()


@dataclass(frozen=True)
class Limits:
    seconds: float = 60.0  # of each exercise, and of loading the file
    total: float = TOTAL  # of the submission as a whole
    partial: float = 0.0  # share of the points for passing an exercise's public tests alone


@dataclass(frozen=True)
class Result:
    number: int
    name: str
    points: float
    possible: int
    message: str  # what went wrong; empty if nothing did
    public: bool = False  # whether the public tests pass


@dataclass
class Findings:
    """What is known of a submission beside its points."""

    missing: list[str] = field(default_factory=list)  # protections that this system does not offer
    flags: list[str] = field(default_factory=list)  # places in the code that a teacher should look at
    likeness: float = 0.0  # to the course's solutions, averaged over the exercises that were changed; 1 is a copy
    outlines: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a judge says of a submission beside the results of its exercises."""

    report: Findings
    failed: str  # why the results do not count; "" if they do
    cpu: float  # seconds of the grader's CPU time

"""The one exception a user should ever see: a clear sentence, printed without a traceback, exit code 2.

Surroundings fail in many ways: a file without permission, a full disk, too little memory, a number beyond all bounds.
`sentence` turns these into one sentence, so that no program needs a handler for each. Everything else is a fault of
the program and keeps its traceback.
"""

import errno
import os
import re
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

# Errors of files and disks name a file, but for these, which come while an open file is written, or where none can be
# opened. Those of networks are the network code's.
WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
NETWORK_ERRORS = (ConnectionError, TimeoutError)
ADVICE = {
    errno.ENOSPC: "make room on the disk, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "choose a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "std::bad_alloc",
    "alloc_failed",
    "unable to allocate",
    "storage size calculation overflowed",
    "integer multiplication overflow",
    "maximum allowed dimension exceeded",
    "larger than the maximum possible size",
    "invalid buffer size",
)  # of torch, numpy, CUDA and MPS
# escape sequences of a terminal, and what no line shows
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SENTENCE = re.compile(r"(?<=[\w)\]'\"`])\. +(?=[A-Z])")  # between two sentences
LONGEST = 300  # characters of another library's message


class UserError(Exception):
    """What was wrong, what was expected, and what to type instead, in one sentence."""


def sentence(problem: BaseException, lower: str = "") -> str | None:
    """What failed outside the program; None for anything else, which must keep its traceback.

    lower  what to try where memory is short, such as "--batch-size or --size"
    """
    if is_memory(problem):
        return f"there is not enough memory ({explain(problem)}); lower {lower or 'what needs it'}"
    if is_file_error(problem):
        names = [os.fsdecode(name) for name in (problem.filename, problem.filename2) if isinstance(name, (str, bytes))]
        advice = ADVICE.get(problem.errno or 0)
        return f"cannot open or write {' or '.join(map(printable, names)) or 'a file'} ({problem.strerror})" + (
            f"; {advice}" if advice else ""
        )
    if isinstance(problem, OverflowError):
        return f"a number is too large to compute with ({explain(problem)})"
    if isinstance(problem, RecursionError) and raised_in_json(problem):
        return "a JSON file is nested too deeply to be read; no file of a model or a data set is"
    if isinstance(problem, UnicodeEncodeError) and "surrogates" in problem.reason:
        return f"a text holds characters that are no Unicode ({printable(problem.object[problem.start : problem.end])}); write it again"
    return None


def is_file_error(problem: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused an operation on a file."""
    if not isinstance(problem, OSError) or problem.errno is None or isinstance(problem, NETWORK_ERRORS):
        return False
    return problem.filename is not None or problem.errno in WITHOUT_NAME


def is_memory(problem: BaseException) -> bool:
    """Whether memory ran out, on the processor or on a GPU."""
    if isinstance(problem, MemoryError) or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM):
        return True
    words = str(problem).lower()  # torch.OutOfMemoryError is a RuntimeError
    return isinstance(problem, (RuntimeError, ValueError)) and any(phrase in words for phrase in NO_MEMORY)


@contextmanager
def enough_memory(device: str, lower: str) -> Iterator[None]:
    """Turn the several ways of running out of memory into one sentence. lower: what to try, "--n or --size"."""
    try:
        yield
    except Exception as problem:
        if not is_memory(problem):
            raise
        raise UserError(f"there is not enough memory on {device} ({explain(problem)}); lower {lower}") from problem


def raised_in_json(problem: BaseException) -> bool:
    frames = traceback.extract_tb(problem.__traceback__)
    return bool(frames) and os.path.basename(os.path.dirname(frames[-1].filename)) == "json"


def printable(text: str) -> str:
    """Text that any terminal can show in a line: what is no Unicode or moves the cursor is escaped,
    and a word longer than any name is cut.
    """
    shown = "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:60]}... ({len(word[0]):,} characters)", shown)


def shown(value: object, longest: int = 60) -> str:
    """A value of a file, as it is written there, for a message: a long one is cut."""
    text = printable(CONTROL.sub("", repr(value)))
    return text if len(text) <= longest else f"{text[:longest]}..."


def listed(names: Sequence[str], longest: int = 8, comma: str = ", ") -> str:
    """'a, b, c'; with more than the longest list 'a, b and 7 more'."""
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return comma.join(names[:longest]) + more


def explain(problem: BaseException) -> str:
    """The reason that an exception of Python or a library gives: its first sentence, as one printable line for a
    message in parentheses.

    A first line that ends in a colon goes on with the second,
    and torch's advice before the reason of its unpickler is left out.
    """
    if isinstance(problem, OSError) and problem.strerror:  # without the path, which the message names
        return problem.strerror
    text = str(problem)
    if text.startswith("Weights only load failed"):
        text = text.partition("WeightsUnpickler error:")[2] or text.partition("\n\n")[2] or text
    text = CONTROL.sub("", text.replace("\r", "\n")).encode("utf-8", "backslashreplace").decode("utf-8")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else ""
    reason = SENTENCE.split(reason, maxsplit=1)[0].rstrip(" .:;,")
    reason = reason if len(reason) <= LONGEST else reason[:LONGEST] + "..."
    if isinstance(problem, LookupError) or not reason:  # the text of a KeyError is the key
        return f"{type(problem).__name__}: {reason}" if reason else type(problem).__name__
    return reason

"""The one exception a user should ever see: a clear sentence, printed without a traceback, exit code 2.

Surroundings fail in many ways: a file without permission, a full disk, too little memory, a number beyond all bounds. `sentence` turns
these into one sentence, so that no program needs a handler for each. Everything else is a fault of the program and keeps its traceback.
"""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

FILE_ERRORS = {number for name in (
    "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "EILSEQ", "ELOOP", "ENOSPC", "EDQUOT", "EFBIG",
    "EROFS", "EIO", "ENXIO", "ENODEV", "EBUSY", "ETXTBSY", "EMFILE", "ENFILE", "ESTALE", "ENOTCONN",
) if (number := getattr(errno, name, None))}  # fmt: skip - of files and disks; those of networks are the network code's
ADVICE = {
    errno.ENOSPC: "make room on the disk, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "choose a place that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "std::bad_alloc", "alloc_failed", "unable to allocate",
             "storage size calculation overflowed", "integer multiplication overflow", "maximum allowed dimension exceeded",
             "larger than the maximum possible size", "invalid buffer size")  # fmt: skip - of torch, numpy, CUDA and MPS


class UserError(Exception):
    """What was wrong, what was expected, and what to type instead, in one sentence."""


def sentence(problem: BaseException, lower: str = "") -> str | None:
    """What failed outside the program; None for anything else, which must keep its traceback.

    lower  what to try where memory is short, such as "--batch or --size"
    """
    if is_memory(problem):
        return f"there is not enough memory ({first_line(problem)}); lower {lower or 'what needs it'}"
    if isinstance(problem, OSError) and problem.errno in FILE_ERRORS:
        names = [os.fsdecode(name) for name in (problem.filename, problem.filename2) if isinstance(name, (str, bytes))]
        advice = ADVICE.get(problem.errno)
        return f"cannot open or write {' or '.join(map(printable, names)) or 'a file'} ({problem.strerror})" + (f"; {advice}" if advice else "")
    if isinstance(problem, OverflowError):
        return f"a number is too large to compute with ({first_line(problem)})"
    if isinstance(problem, RecursionError) and raised_in_json(problem):
        return "a JSON file is nested too deeply to be read; no file of a model or a data set is"
    if isinstance(problem, UnicodeEncodeError) and "surrogates" in problem.reason:
        return f"a text holds characters that are no Unicode ({printable(problem.object[problem.start : problem.end])}); write it again"
    return None


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
        raise UserError(f"there is not enough memory on {device} ({first_line(problem)}); lower {lower}") from problem


def raised_in_json(problem: BaseException) -> bool:
    frames = traceback.extract_tb(problem.__traceback__)
    return bool(frames) and os.path.basename(os.path.dirname(frames[-1].filename)) == "json"


def printable(text: str) -> str:
    """Text that any terminal can show: what is no Unicode is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(problem: BaseException) -> str:
    """Of an exception, for messages."""
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)

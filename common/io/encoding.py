"""Text that goes in and out of a process, in whatever encoding the system uses.

Chinese prompts and file names appear in this course, but not every system encodes text as UTF-8: on Windows output that is piped
uses cp1252 or gbk, and in the POSIX locale of cron or ssh everything is ASCII. With these two functions no program fails because
of that.
"""

import codecs
import os
import sys


def accept_any_text() -> None:
    """Let stdout and stderr print every string: a character that their encoding lacks is written as \\uXXXX.

    The encoding itself stays, because the terminal or the pipe's reader expects it. Escapes are used (errors="backslashreplace")
    because they keep different names different, whereas "replace" turns every Chinese name into question marks.
    A stream that does not exist (a process without a console, `>&-`) is replaced by one that prints nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))
        elif hasattr(stream, "reconfigure"):  # a notebook's stream is not a file, and takes every character
            stream.reconfigure(errors="backslashreplace")


def restart_in_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the system's encoding cannot represent its arguments or file names.

    This happens in two cases: the encoding is ASCII (a POSIX locale whose UTF-8 mode is switched off), or an argument is not
    valid in it and came as lone surrogates. In UTF-8 mode arguments, file names and output are all UTF-8. Decoding the arguments
    alone would not be enough: a file with a Chinese name could not be opened. Windows and macOS always use UTF-8 for names.
    """
    encoding = codecs.lookup(sys.getfilesystemencoding()).name
    if encoding == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not started_as_program(sys.orig_argv, sys.argv):
        return
    if encoding == "ascii" or any(has_surrogates(word) for word in sys.argv):
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def started_as_program(original: list[str], argv: list[str]) -> bool:
    """Whether the process was started as `python file arguments` or `python -m module arguments` (and is no notebook or test)."""
    before, own = original[: len(original) - len(argv)], original[len(original) - len(argv) :]
    return own[1:] == argv[1:] and (own[:1] == argv[:1] or before[-1:] == ["-m"])


def has_surrogates(text: str) -> bool:
    """Whether the text holds halves of characters, which is how Python passes on bytes that it could not decode."""
    return any("\ud800" <= character <= "\udfff" for character in text)

"""Settings of the process: environment variables that libraries read when they are imported,
text streams, and the user.

`common/__init__.py` calls `prepare_process`, so that these settings are made before `import torch`.
What you set yourself stays.

OMP_WAIT_POLICY, GOMP_SPINCOUNT  A thread that waits for another one sleeps after 1,000 rounds of a loop. By default it
                                 spins
    300,000 rounds and so takes the core that the other thread needs: with two threads beside two busy processes, a
    training step took 31 times as long as with one thread alone, and takes twice as long with this setting. With no
    spinning at all, a second thread gains almost nothing on an idle machine (0.97 of one thread's time, instead of
    0.69). (python -m bench.busy)
PYTORCH_ENABLE_MPS_FALLBACK  An operation that Apple's MPS lacks runs on the CPU instead of ending the program.
HF_ENDPOINT  An empty address of a mirror counts as none, and one without a scheme gets https://.
mallopt  Freed memory stays with the process (`keep_freed_memory`). By default glibc gives it back to the system and
    asks for it again, which took up to 48,000 page faults and 0.08 s of a training step of 0.6 s.

Text goes in and out of a process in the encoding of the system. Chinese prompts and file names appear in this course,
but not every system uses UTF-8: on Windows, piped output is in cp1252 or gbk, and in the POSIX locale of cron or ssh
everything is ASCII. With `accept_any_text` and `restart_in_utf8` no program fails because of that.
"""

import codecs
import ctypes
import getpass
import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from common.io.hub import tidy_environment

OPENMP_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names of its parameters, from malloc.h


def prepare_process() -> None:
    """Make the settings that must precede `import torch`, and those without which programs fail on some systems."""
    set_variables()
    keep_freed_memory()
    tidy_environment()
    accept_any_text()
    name_unknown_user()


def set_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OMP_WAIT_POLICY, GOMP_SPINCOUNT and PYTORCH_ENABLE_MPS_FALLBACK where they are not set."""
    if "OMP_WAIT_POLICY" not in environment:  # a spin count would overrule the user's own policy
        for name, value in OPENMP_SETTINGS.items():
            environment.setdefault(name, value)
    environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def keep_freed_memory() -> bool:
    """Let glibc keep up to 256 MB of freed memory instead of giving it back after every step. Returns whether it does.

    The user's own settings of malloc win, and nothing happens on systems with another C library.
    """
    own = os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"}
    if own or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no such file
        return False
    return all(mallopt(parameter, size) for parameter, size in ((TRIM_THRESHOLD, 2**28), (MMAP_THRESHOLD, 2**25)))


def accept_any_text() -> None:
    """Let stdout and stderr print every string: a character that their encoding lacks is written as \\uXXXX.

    The encoding itself stays, because the terminal or the pipe's reader expects it. Escapes are used
    (errors="backslashreplace") because they keep different names different, whereas "replace" turns every Chinese name
    into question marks. A stream that does not exist (a process without a console,
    `>&-`) is replaced by one that prints nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))
        elif hasattr(stream, "reconfigure"):  # a notebook's stream is not a file, and takes every character
            stream.reconfigure(errors="backslashreplace")


def restart_in_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the system's encoding cannot represent its
    arguments or file names.

    This happens in two cases: the encoding is ASCII (a POSIX locale whose UTF-8 mode is switched off), or an argument
    is not valid in it and came as lone surrogates. In UTF-8 mode arguments, file names and output are all UTF-8.
    Decoding the arguments alone would not be enough: a file with a Chinese name could not be opened. Windows and macOS
    always use UTF-8 for names.
    """
    encoding = codecs.lookup(sys.getfilesystemencoding()).name
    if encoding == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not started_as_program(sys.orig_argv, sys.argv):
        return
    if encoding == "ascii" or any(has_surrogates(word) for word in sys.argv):
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def started_as_program(original: list[str], argv: list[str]) -> bool:
    """Whether the process was started as `python file arguments` or `python -m module arguments` (and
    is no notebook or test).
    """
    before, own = original[: len(original) - len(argv)], original[len(original) - len(argv) :]
    return own[1:] == argv[1:] and (own[:1] == argv[:1] or before[-1:] == ["-m"])


def has_surrogates(text: str) -> bool:
    """Whether the text holds halves of characters, which is how Python passes on bytes that it could not decode."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def name_unknown_user() -> None:
    """Set USER where the user has no name, and HOME (to the folder for temporary files) where
    there is no home directory.

    A container started with `--user 1234` has no entry for that user. torch needs the user's name for its cache folder
    and fails with "KeyError: getpwuid(): uid not found"; libraries that keep files need the home directory.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # which of them depends on the system and on Python's version
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()

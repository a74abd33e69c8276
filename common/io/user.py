"""A name and a home directory for users that the system does not know.

A container started with `--user 1234` has no entry for that user. torch needs the user's name for its cache folder and fails with
"KeyError: getpwuid(): uid not found"; libraries that keep files need the home directory.
"""

import getpass
import os
import tempfile
from pathlib import Path


def name_unknown_user() -> None:
    """Set USER where the user has no name, and HOME (to the folder for temporary files) where there is no home directory."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # which of them depends on the system and on Python's version
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()

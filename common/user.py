"""Who runs the process: some surroundings do not say, and libraries end with a traceback there.

A container started as `--user 1234` runs as a user whom its system does not know. torch asks for the user's name to place its cache
(KeyError: getpwuid(): uid not found), and libraries that keep files ask for the home directory.
"""

import getpass
import os
import tempfile
from pathlib import Path


def name_unknown_user() -> None:
    """Give a user without a name one, and a user without a home directory the folder for temporary files."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # which of them depends on the system and on Python's version
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()

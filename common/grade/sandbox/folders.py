"""Where Python and its packages are, and which of these folders belong to the course."""

import os
import sys
from collections.abc import Iterable

PACKAGES = ("site-packages", "dist-packages")


def needed() -> list[str]:
    """Where Python, its packages and the system's libraries are, by the names under which Python knows them."""
    paths = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime"}
    paths |= {os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))}
    paths |= {path for path in sys.path if os.path.isdir(path)}
    return sorted({os.path.abspath(path) for path in paths if os.path.exists(path)} - {"/"})


def outermost(paths: Iterable[str]) -> list[str]:
    """Paths without those that lie within others of them."""
    kept: list[str] = []
    for path in sorted(set(paths) - {"/"}):
        if not any(within(path, other) for other in kept):
            kept.append(path)
    return kept


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def of_course(path: str, course: str) -> bool:
    """Whether a file or folder lies in the course, by whatever name, and not in a virtual environment there."""
    real, course = os.path.realpath(path), os.path.realpath(course)
    if not within(real, course):
        return False
    environments = [each for each in map(os.path.realpath, (sys.prefix, sys.base_prefix)) if within(each, course)]
    packages = set(real.removeprefix(course).split("/")) & set(PACKAGES)
    return not packages and not any(within(real, each) for each in environments)

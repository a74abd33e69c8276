"""A progress bar for work that may take long: it appears after some seconds, says when the work will end,
and is gone afterwards.
"""

import sys
from collections.abc import Iterable
from typing import Any

SHOWN_AFTER = 3.0  # seconds


def refresh_interval() -> float:
    """Seconds between two updates of a bar: short on a terminal, long in a log file, where each update stays."""
    return 1.0 if sys.stderr.isatty() else 30.0


def with_progress(
    what: str, things: Iterable | None = None, total: int | None = None, unit: str = "it", quiet: bool = False
) -> Any:
    """tqdm's bar: `for thing in with_progress("drawing", things)`, or `with with_progress("drawing", total=9) as bar`
    and bar.update(). quiet: no bar.
    """
    from tqdm import tqdm

    return tqdm(
        things,
        what,
        total,
        unit=unit,
        leave=False,
        delay=SHOWN_AFTER,
        mininterval=refresh_interval(),
        dynamic_ncols=True,
        disable=quiet,
    )

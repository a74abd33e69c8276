"""A progress bar for work that may take long: it appears after some seconds, says when the work will end,
and is gone afterwards.
"""

from collections.abc import Iterable
from typing import Any

SHOWN_AFTER = 3.0  # seconds


def with_progress(what: str, things: Iterable | None = None, total: int | None = None, unit: str = "it") -> Any:
    """tqdm's bar: `for thing in with_progress("drawing", things)`, or `with with_progress("drawing",
    total=9) as bar` and bar.update().
    """
    from tqdm import tqdm

    return tqdm(things, what, total, unit=unit, leave=False, delay=SHOWN_AFTER, mininterval=1, dynamic_ncols=True)

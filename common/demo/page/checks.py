"""Checks of what a visitor sends. The widgets allow nothing else, but a visitor may send without them."""

import base64
import binascii
import io
import math
from collections.abc import Collection
from typing import Any

from PIL import Image

from common.demo.page.texts import TEXTS, PageError
from common.demo.pictures.own_picture import SIZE

LONGEST_PROMPT = 200
PREFIX = "data:image/png;base64,"
LARGEST = 4 * (SIZE * SIZE * 4 + 4096) // 3  # characters: 128 x 128 pixels, even if they do not compress


def number(value: Any, name: str, low: float, high: float) -> float:
    """A number in a range. name: key of its label"""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (low <= value <= high):
        raise PageError("error.range", name=TEXTS[name], low=f"{low:g}", high=f"{high:g}")
    return float(value)


def whole(value: Any, name: str, low: int, high: int) -> int:
    found = number(value, name, low, high)
    if not math.isclose(found, round(found)):
        raise PageError("error.range", name=TEXTS[name], low=low, high=high)
    return round(found)


def choice(value: Any, choices: Collection[Any]) -> Any:
    if not isinstance(value, (str, int)) or value not in choices:
        raise PageError("error.choice", value=str(value)[:40])
    return value


def words(value: Any, missing: str | None = None, most: int = LONGEST_PROMPT) -> str:
    """A text without line breaks. missing: key of the message if it is empty; None allows that"""
    found = " ".join(value.split()) if isinstance(value, str) else ""
    if missing and not found:
        raise PageError(missing)
    if len(found) > most:
        raise PageError("error.long", most=most)
    return found


def image(value: Any) -> Image.Image:
    """A picture of the easel: a PNG of 128 x 128 pixels as a data URL. Its size is checked before it is decoded."""
    if not value:
        raise PageError("error.picture")
    if not isinstance(value, str) or not value.startswith(PREFIX) or len(value) > LARGEST:
        raise PageError("error.odd")
    try:
        data = base64.b64decode(value.removeprefix(PREFIX), validate=True)
        found = Image.open(io.BytesIO(data), formats=["PNG"])
        if found.size != (SIZE, SIZE):
            raise PageError("error.odd")
        found.load()
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as problem:
        raise PageError("error.odd") from problem
    return found

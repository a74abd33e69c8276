"""A set of small images held in memory as bytes."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data.captions import Texts
from common.errors import UserError
from common.io.pixels import to_float


@dataclass(frozen=True)
class Attributes:
    """What is true of each image: its names[k] is values[k][table[i, k]].

    table   (N, K) int64
    names   K names, such as "colour"
    values  for each name the names of its values, such as ("red", "orange", ...)
    """

    table: Tensor
    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def of(self, i: int) -> dict[str, str]:
        """The attributes of one image: {"colour": "red", ...}."""
        columns = zip(self.names, self.values, self.table[i].tolist(), strict=True)
        return {name: values[k] for name, values, k in columns}


@dataclass(frozen=True)
class Images:
    """Images of one size, with labels, captions and attributes where the set has them.

    pixels      (N, C, H, W) uint8
    labels      (N,) int64, or None
    classes     names of the labels
    captions    one text per image, in the language asked for, or None
    attributes  what is true of each image, or None
    texts       where captions comes from: all there are, or None for a set that never has any
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    attributes: Attributes | None = None
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        return self.pixels.shape[-1]

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"image": (B, C, H, W) float32 in [-1, 1], "label": (B,)}"""
        batch = {"image": to_float(self.pixels[indices])}
        return batch | {"label": self.labels[indices]} if self.labels is not None else batch

    def resized(self, size: int | None) -> "Images":
        """The same images at size x size pixels."""
        if size is None or size == self.size:
            return self
        if size < 4:
            raise UserError(f"--size must be at least 4 pixels, not {size}")
        pixels = tv.resize(self.pixels, [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        return replace(self, pixels=pixels)

    def in_channels(self, channels: int) -> "Images":
        """The same images in colour (3) or grey (1), as a network wants them."""
        if self.channels == channels:
            return self
        if channels == 1:
            return replace(self, pixels=tv.rgb_to_grayscale(self.pixels))
        return replace(self, pixels=self.pixels.expand(-1, channels, -1, -1).contiguous())

    def first(self, n: int | None) -> "Images":
        """The first n of them, with all that belongs to them."""
        if n is None or n == len(self):
            return self
        if n < 1:
            raise UserError(f"--n must be above 0, not {n}")
        if n > len(self):
            raise UserError(f"--n {n} is more than the {len(self)} images of {self.name}")
        return replace(
            self,
            pixels=self.pixels[:n],
            labels=None if self.labels is None else self.labels[:n],
            captions=self.captions and self.captions[:n],
            attributes=self.attributes and replace(self.attributes, table=self.attributes.table[:n]),
            texts=self.texts and self.texts.of(range(n)),
        )

    def in_language(self, language: str | None) -> "Images":
        """The same images with captions in "en", "zh" or "both", or a UserError that says what is missing.

        None asks for nothing: the captions there are, else none.
        """
        if language is not None:
            return replace(self, captions=self.need_captions(language))
        return self if self.texts is None else replace(self, captions=self.texts.offered())

    def need_captions(self, language: str | None = None) -> tuple[str, ...]:
        """A caption for every image, or a UserError that says why there is none: for what cannot do without."""
        if self.texts is not None:
            return self.texts.need(language)
        if self.captions is not None and language is not None:
            raise UserError(
                f"the captions of {self.name} are not marked by language, so none can be chosen; leave out --language"
            )
        if self.captions is None:
            raise UserError(
                f"{self.name} has no captions; choose creatures, pokemon, or a folder of images with captions"
            )
        return self.captions


def in_split(i: int, n: int, split: str) -> bool:
    """For sets with no test split of their own: every tenth of n images is one, if there are ten at all."""
    return n < 10 or (i % 10 == 9) == (split == "test")


def first_existing(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.exists()), None)

"""The flags of generate.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class GenerationFlags:
    """Flags of generate.py."""

    name: Positional[str]
    """Prompt of the picture, in general the name of a dish."""
    region: tuple[str, ...] = ()
    """PLACE:PROMPT, one or more: a place is left, right, top, bottom, middle,
    or left,top,right,bottom as fractions of the picture.
    """
    then: tuple[str, ...] = ()
    """FRACTION:PROMPT, one or more: the prompt that replaces the name from that fraction of the steps on."""
    sweep_then: str | None = None
    """Prompt that begins at 0.4, 0.2, 0.1 and 0.05 of the steps, with a row for each,
    instead of --then and --region.
    """
    guidance: str = "3"
    """Guidance scale, or two of them, 8>2: the first at the noise, the last at the picture."""
    negative: str = ""
    """Negative prompt."""
    model: Path | None = None
    """Model that draws: a run of train_text2dish.py, or any latent text-to-image model; by default the shipped one."""
    clip: str | None = None
    """CLIP that encodes the names; by default the one that the model was trained with."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Library that computes the CLIP embeddings; both give the same numbers, to about 1e-7."""
    n: int = 8
    """Number of pictures in a row."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    soft: float = 2.0
    """Width in latents over which the edge of a region is softened."""
    out: Path = Path("runs/06_inpaint_gif/control.png")
    """File of the rows."""
    keep: Path | None = None
    """File of the first picture drawn with control."""
    seed: int = 0
    """Random seed of the initial noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

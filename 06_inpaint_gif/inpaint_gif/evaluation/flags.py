"""The flags of evaluate_gif.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.io.ranges import Range


@dataclass(frozen=True)
class GIFEvaluationFlags:
    """Flags of evaluate_gif.py."""

    only: tuple[Literal["dishes", "holes", "drift", "moves"], ...] = ("dishes", "holes", "drift", "moves")
    """Parts of the evaluation."""
    dish: Path | None = None
    """Model that draws dishes, a run of train_text2dish.py; by default the shipped one."""
    clip: str | None = None
    """CLIP that encodes the names; by default the one that the dish model was trained with."""
    classifier: str | None = None
    """CLIP that classifies the drawn pictures; by default the same."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Library that computes the CLIP embeddings; both give the same numbers, to about 1e-7."""
    engines: tuple[Literal["inpaint", "repaint", "controlnet", "nearest", "reflect"], ...] = (
        "inpaint",
        "repaint",
        "controlnet",
        "reflect",
        "nearest",
    )
    """Engines that paint the holes and the keyframes of the drift; the first one also paints the moves."""
    inpaint: Path | None = None
    """Network of the engine inpaint; by default the shipped one."""
    controlnet: Path | None = None
    """ControlNet of the engine controlnet, a run of train_controlnet.py; by default the shipped one."""
    guidance: float = 3.0
    """Guidance scale for drawing dishes."""
    paint_guidance: float = 2.0
    """Guidance scale for painting holes."""
    mask_blur: float = 3.0
    """Pixels over which the edge of a hole is softened, as in make_gif.py."""
    size: Annotated[int | None, Range(16, 256, 64, unit=" pixels")] = None
    """Side of the scenes of holes and drift in pixels; by default the size at which the dishes are drawn."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    n: int = 40
    """Holes for each engine; a quarter of it, at least one, is the number of scenes for the drift, and a tenth the number
    of pictures of each dish."""
    frames: Annotated[int, Range(3, 10_000)] = 24
    """Frames of the film of each move."""
    out: Path | None = None
    """Folder of the tables as CSV files."""
    seed: int = 0
    """Random seed of pictures, holes and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

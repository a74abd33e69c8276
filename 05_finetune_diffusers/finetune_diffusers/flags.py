"""Where the chapter finds its default model and where it writes, and the flags of generate.py and restore.py.
Nothing heavy is imported here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from common.io.ranges import SAMPLER_STEPS, Range

# the course's own small Stable Diffusion
PRETRAINED = Path(__file__).resolve().parents[2] / "04_latent_sd" / "pretrained"
OUT = Path("runs/05_finetune_diffusers")
SMALL = 50_000_000  # a U-Net with fewer weights is small: it learns at rates that would ruin a large one


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of generate.py."""

    prompts: Positional[tuple[str, ...]] = ("a red creature with bat wings", "a blue creature with two horns")
    """Prompts; each gets n pictures."""
    model: str = str(PRETRAINED)
    """Folder of a pipeline, run folder, checkpoint in one file, or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a repository on the hub."""
    variant: str | None = None
    """Variant of the weights, such as fp16; by default the weights without a variant, where there are any."""
    image: Path | None = None
    """Picture to begin from instead of noise. A picture much larger than those the model was trained on is shrunk."""
    strength: float = 0.7
    """With --image: how far the picture is noised, above 0 to 1; 1 forgets it."""
    scheduler: str = "own"
    """own (the scheduler that the model was saved with), ddpm, ddim, pndm, euler, euler-karras, euler-a, heun, dpm++,
    dpm++-karras, dpm++-sde, dpm++-sde-karras, unipc, deis, lms, lcm, tcd.
    """
    compare: str | None = None
    """Several schedulers instead of one: own,ddim,dpm++ draws a row for each, from the same noise."""
    steps: Annotated[int, SAMPLER_STEPS] = 25
    """Steps of the scheduler, from noise to picture."""
    guidance: Annotated[float | None, Range(1, 1000, 3.0, hint="1 is off")] = None
    """Guidance scale w, 1 or more; 1 is off. By default 3 for a small model, else the default of its pipeline: 7.5 for
    Stable Diffusion, 5 for XL.
    """
    negative: str = ""
    """Negative prompt, used in place of the empty prompt."""
    n: int = 4
    """Pictures of each prompt."""
    size: str | None = None
    """Pixels, 64 or 96x64 (width x height), multiples of 8; by default what the model was trained on."""
    seed: int = 0
    """Random seed of the first picture; the next has seed + 1, and so on. A picture depends on its own seed alone."""
    low_memory: bool = False
    """On a GPU, keep only the network that is at work there, and decode pictures one by one: slower, in less memory."""
    out: Path = OUT / "use"
    """Folder of the pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class RestoreFlags:
    """Flags of restore.py."""

    damage: Literal["mosaic", "noise", "scratch"] = "mosaic"
    """Damage of the pictures."""
    method: tuple[Literal["img2img", "inpaint"], ...] = ("img2img", "inpaint")
    """Methods of repair."""
    strength: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """How far the pictures are noised, above 0 to 1; several are compared."""
    guidance: Annotated[tuple[float, ...], Range(1, 1000, 3, hint="1 is off")] = (1.0, 3.0, 7.5)
    """Guidance scales, 1 or more; several are compared."""
    steps: Annotated[tuple[int, ...], SAMPLER_STEPS] = (10, 30)
    """Steps from pure noise; a strength of 0.4 takes 0.4 of them. Several are compared."""
    scheduler: str = "own"
    """own (the scheduler that the model was saved with), ddim, dpm++, euler-a, ...: see generate.py."""
    model: str = str(PRETRAINED)
    """Folder of a pipeline, run folder, checkpoint in one file, or hub id;
    an inpainting model (9 channels) takes --method inpaint only.
    """

    n: int = 8
    """Number of pictures; with --image, of attempts."""
    split: Literal["test", "heldout"] = "test"
    """Creatures that no model was trained on: new ones of known combinations, or combinations held out."""
    image: Path | None = None
    """Your own picture instead of creatures."""
    mask: Path | None = None
    """With --image: a picture of its size, white where it is to be repaired; or strokes on a transparent layer; or the
    picture itself with a transparent hole. mask.png shows how it was understood."""
    prompt: str = ""
    """With --image: what the picture shows."""
    damaged: bool = False
    """With --image: whether the picture is damaged already.
    Then nothing is added, and there is no truth to compare with.
    """
    size: str | None = None
    """With --image: size that the picture is cut to, 64 or 96x64 pixels; by default what the model was trained on."""

    block: int | None = None
    """Side in pixels of the mosaic's blocks; by default an eighth of the picture's shorter side."""
    mosaic_fraction: Annotated[float, Range(0, 1, 0.6, above=True)] = 0.6
    """Fraction of each side that the mosaic covers."""
    noise: Annotated[float, Range(0, 100, 0.4, above=True)] = 0.4
    """Standard deviation of the noise; pictures reach from -1 to 1."""
    scratches: int = 6
    """Scratches in each picture."""
    seed: int = 0
    """Random seed of the damage, and of the first picture's repair."""
    out: Path = OUT / "restore"
    """Folder of the tables and pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

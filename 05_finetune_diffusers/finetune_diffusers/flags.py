"""Where the chapter finds its default model and where it writes, and the flags of generate.py.
Nothing heavy is imported here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from common.io.ranges import SAMPLER_STEPS, Range

# the course's own small Stable Diffusion
PRETRAINED = Path(__file__).resolve().parents[2] / "04_latent_sd" / "pretrained"
OUT = Path("runs/05_finetune_diffusers")


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of generate.py."""

    prompts: Positional[tuple[str, ...]] = ("a red creature with wings", "a blue creature with horns")
    """Prompts; each gets n pictures."""
    model: str = str(PRETRAINED)
    """Folder of a pipeline, run folder, checkpoint in one file, or hub id."""
    image: Path | None = None
    """Picture to begin from instead of noise."""
    strength: float = 0.7
    """With --image: how far the picture is noised, above 0 to 1; 1 forgets it."""
    scheduler: str = "dpm++"
    """ddpm, ddim, pndm, euler, euler-a, heun, dpm++, dpm++-karras, dpm++-sde, unipc, deis, lms."""
    compare: str | None = None
    """Several schedulers instead of one: ddim,dpm++,euler-a draws a row for each, from the same noise."""
    steps: Annotated[int, SAMPLER_STEPS] = 25
    """Steps of the scheduler, from noise to picture."""
    guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale w, 1 or more; 1 is off."""
    negative: str = ""
    """Negative prompt, used in place of the empty prompt."""
    n: int = 4
    """Pictures of each prompt."""
    size: str | None = None
    """Pixels, 64 or 96x64 (width x height), multiples of 8; by default what the model was trained on."""
    seed: int = 0
    """Random seed of the first picture; the next has seed + 1, and so on. A picture depends on its own seed alone."""
    low_memory: bool = False
    """Attention and decoding in slices, and on a GPU only the network that is at work: slower, in much less memory."""
    out: Path = OUT / "use"
    """Folder of the pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

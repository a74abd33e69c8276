"""Use any text-to-image model: prompts to pictures, pictures to pictures, any scheduler, and schedulers side by side.

  python 05_finetune_diffusers/generate.py "a red creature with wings" --n 8 --seed 7
  python 05_finetune_diffusers/generate.py "番茄炒蛋" --negative "a table" --guidance 6 --size 96x64
  python 05_finetune_diffusers/generate.py "a blue creature" --compare ddim,dpm++,euler-a --steps 20
  python 05_finetune_diffusers/generate.py "a green creature with horns" --image drawing.png --strength 0.6
  python 05_finetune_diffusers/generate.py "a red fox, oil painting" --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda

Without --model it is the small Stable Diffusion of chapter 4.
Writes every picture as a PNG of its own, and a contact sheet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from common.cli import run
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.paths import OUT, PRETRAINED


@dataclass(frozen=True)
class Args:
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


def main(args: Args) -> None:
    from finetune_diffusers.generation import PipelineSettings, generate

    generate(
        args.prompts,
        args.model,
        PipelineSettings(args.scheduler, args.steps, args.guidance, args.seed),
        (args.scheduler,) if args.compare is None else args.compare.split(","),
        args.negative,
        args.n,
        args.size,
        args.image,
        args.strength,
        args.low_memory,
        args.out,
        args.device,
    )


if __name__ == "__main__":
    run(main, Args)

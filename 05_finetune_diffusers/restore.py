"""Repair pictures with a text-to-image model: take away a mosaic, noise or scratches, and measure what helps.

  python 05_finetune_diffusers/restore.py                                      a mosaic over held-out creatures; the whole study
  python 05_finetune_diffusers/restore.py --damage scratch --method inpaint
  python 05_finetune_diffusers/restore.py --damage noise --noise 0.3 --strength 0.2 0.3 0.4 0.5
  python 05_finetune_diffusers/restore.py --image photo.png --mask where.png --prompt "a red creature" --damaged
  python 05_finetune_diffusers/restore.py --model stable-diffusion-v1-5/stable-diffusion-inpainting --method inpaint --image photo.png ...

There are two ways. img2img takes the whole damaged picture part of the way back to noise and denoises it again;
inpaint does so under the mask alone, and gives the network the rest of the picture, freshly noised, at every step.
Afterwards known pixels are put back.

Writes study.csv (every setting, with errors over the pictures), study.png, a labelled grid.png,
and what two passes in a row give.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import run
from common.errors import UserError
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.flags import OUT, PRETRAINED


@dataclass(frozen=True)
class Args:
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
    scheduler: str = "dpm++"
    """ddim, dpm++, euler-a, ...: see generate.py."""
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

    block: int = 8
    """Side in pixels of the mosaic's blocks."""
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


def main(args: Args) -> None:
    if args.image is None and (args.mask or args.prompt or args.damaged or args.size):
        raise UserError("--mask, --prompt, --damaged and --size speak of your own picture; name it with --image")

    from finetune_diffusers.restoration import Degradation, OwnPicture, make_grid, restore

    degradation = Degradation(args.damage, args.block, args.mosaic_fraction, args.noise, args.scratches, args.seed)
    grid = make_grid(args.method, args.steps, args.guidance, args.strength)
    picture = OwnPicture(args.image, args.mask, args.prompt, args.damaged, args.size) if args.image else None
    restore(args.model, degradation, grid, picture, args.n, args.split, args.scheduler, args.out, args.device)


if __name__ == "__main__":
    run(main, Args)

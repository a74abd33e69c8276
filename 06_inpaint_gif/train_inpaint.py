"""Train a U-Net to paint into holes, beginning with one that draws whole pictures.

  python 06_inpaint_gif/train_inpaint.py                                begins with chapter 4's small Stable Diffusion, learns on drawn dishes
  python 06_inpaint_gif/train_inpaint.py --data my/photos --model path/to/stable-diffusion-v1-5 --device cuda
  python 06_inpaint_gif/train_inpaint.py --resume runs/06_inpaint_gif/inpaint-dishes

The first layer is widened from 4 channels to 9: besides the noisy latents the U-Net is shown the mask and the latents of the picture
with its hole (Rombach et al. 2022). The new weights begin at zero, so that at the first step it is the network it was. It sees dishes
through a camera that looks anywhere (scenes.py), with holes as cameras leave them and others (hole_masks.py).

The run folder's model/ is one for diffusers' StableDiffusionInpaintPipeline.from_pretrained, and for make_gif.py --engine inpaint --model.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import free_folder, run
from common.training.flags import Drawing, check_flags
from common.training.settings import OTHER, Presets, resumed, with_folder, with_preset

CHAPTER_4 = Path(__file__).parent.parent / "04_latent_sd" / "pretrained"


@dataclass(frozen=True)
class Own:
    """The flags of this training alone; the others are in common/training/flags.py."""

    data: str = "dishes"
    """dishes, which are drawn, or a folder of images with captions, an .lmdb, hub:owner/name."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """Only so many images; by default 2,000 drawn scenes, or all there are."""
    windows: int = 4
    """Random windows onto each image."""
    holes: int = 4
    """Random holes in each window. All are made, and encoded, before the training begins."""
    model: Path = CHAPTER_4
    """The Stable Diffusion folder or file to begin with; autoencoder and text encoder stay as they are."""


@dataclass(frozen=True)
class Args(Drawing, Own):
    guidance: float = 2.0
    """Guidance scale of the pictures drawn as training goes; 1 is off."""


@dataclass(frozen=True)
class Preset:
    """What suits data on one kind of device."""

    minutes: float
    batch_size: int = 32
    lr: float = 1e-3


PRESETS = Presets(  # of the dishes as latents of 16 x 16, on a CPU with one core
    cpu={"dishes": Preset(minutes=30, batch_size=16), OTHER: Preset(minutes=60, lr=5e-4)},
    mps={"dishes": Preset(minutes=20, batch_size=64), OTHER: Preset(minutes=60, lr=3e-4)},
    gpu={"dishes": Preset(minutes=15, batch_size=256), OTHER: Preset(minutes=60, batch_size=32, lr=1e-4)},
)


def check_numbers(args: Args) -> None:
    check_flags(args)


def new_run(args: Args) -> Args:
    """Settle every setting, so that --resume needs nothing but the folder."""
    args = replace(args, out=args.out or free_folder(Path("runs/06_inpaint_gif") / f"inpaint-{Path(args.data).stem}"))
    return with_folder(with_preset(args, PRESETS), "06_inpaint_gif")


def main(args: Args) -> None:
    check_numbers(args)
    from inpaint_gif.training.inpaint import fit_inpaint  # brings torch along, which --help should not wait for

    fit_inpaint(resumed(args) if args.resume else new_run(args))


if __name__ == "__main__":
    run(main, Args)

"""ControlNet: a copy of the U-Net's first half learns where edges should be; the U-Net itself stays as it is.

  python 05_finetune_diffusers/controlnet.py                                       trained on the edges of drawn creatures, and measured
  python 05_finetune_diffusers/controlnet.py --data dishes
  python 05_finetune_diffusers/controlnet.py --resume runs/05_finetune_diffusers/controlnet-creatures
  python 05_finetune_diffusers/controlnet.py --use RUN --image sketch.png --prompts "a green creature" "a pink creature"
  python 05_finetune_diffusers/controlnet.py --use RUN                             draw the test edges, and measure again

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". The outputs of the copy enter the
U-Net's second half through convolutions that are zero in the beginning, so at the first step the model draws exactly
as before. The edges have the size of the image and the U-Net that of the latents, so a small network shrinks them f
times: diffusers' default is made for f = 8, and would fail here, where f = 4. Opened by plain diffusers:

  net = ControlNetModel.from_pretrained("runs/05_finetune_diffusers/controlnet-creatures/controlnet")
  pipe = StableDiffusionControlNetPipeline.from_pretrained(MODEL, controlnet=net)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common.cli import run
from common.errors import UserError
from common.io.ranges import Range
from finetune_diffusers.paths import OUT
from finetune_diffusers.training.flags import CaptionedFlags, Preset, SizePresets, checked

PRESETS = SizePresets(
    small=Preset(steps=900, batch_size=16, lr=1e-3), large=Preset(steps=10_000, batch_size=4, lr=1e-5)
)


@dataclass(frozen=True)
class Args(CaptionedFlags):
    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one: half, as in the paper,
    so that the edges alone must carry information.
    """
    threshold: float = 0.2
    """Least strength of an edge: the gradient per pixel, in pictures from -1 to 1."""
    strength: Annotated[float, Range(0, 10, hint="0 is the model without it")] = 1.0
    """Conditioning scale of the ControlNet in the pictures: 0 is the model without it."""
    measure: Annotated[int, Range(1, 10_000, hint="those pictures are the validation pictures here")] = 24
    """Pictures drawn before and after the training to measure what it did."""
    prompts: tuple[str, ...] = ()
    """With --image: prompts that are drawn along its edges.
    Otherwise the captions of test images are drawn along theirs.
    """

    use: Path | None = None
    """Run or folder of a ControlNet to draw with, instead of training."""
    image: tuple[Path, ...] = ()
    """With --use: pictures whose edges are wanted; by default the test images."""
    sheet: Path = OUT / "controlnet.png"
    """Contact sheet of --use."""


def main(args: Args) -> None:
    if args.image and not args.use:
        raise UserError("--image goes with --use RUN, the folder of a trained ControlNet")
    if args.prompts and not args.image:
        raise UserError(
            "--prompts goes with --use and --image; without a picture of yours the captions of test images are drawn, along their edges"
        )
    if args.use and args.resume:
        raise UserError("--resume goes on with a training and --use draws without one; give one of them")
    args = checked(args)
    from finetune_diffusers.training import controlnet

    if args.use:
        controlnet.draw_with_controlnet(
            args, args.use, args.image, args.prompts, args.threshold, args.strength, args.sheet
        )
    else:
        controlnet.train_controlnet(args, args.threshold, args.strength, PRESETS)


if __name__ == "__main__":
    run(main, Args)

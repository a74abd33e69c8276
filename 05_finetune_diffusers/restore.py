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

from common.cli import run
from common.errors import UserError
from finetune_diffusers.flags import RestoreFlags as Args


def main(args: Args) -> None:
    if args.image is None and (args.mask or args.prompt or args.damaged or args.size):
        raise UserError("--mask, --prompt, --damaged and --size speak of your own picture; name it with --image")

    from finetune_diffusers.restoration import restore

    restore(args)


if __name__ == "__main__":
    run(main, Args)

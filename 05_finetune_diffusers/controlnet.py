"""ControlNet: a copy of the U-Net's first half learns where edges should be; the U-Net itself stays as it is.

  python 05_finetune_diffusers/controlnet.py                                       trained on the edges of drawn creatures, and measured
  python 05_finetune_diffusers/controlnet.py --data dishes
  python 05_finetune_diffusers/controlnet.py --resume runs/05_finetune_diffusers/controlnet-creatures
  python 05_finetune_diffusers/controlnet.py --use RUN --image sketch.png --control lines --prompts "a green creature" "a pink creature"
  python 05_finetune_diffusers/controlnet.py --data my/pairs --control conditioning_image         any kind of pictures beside yours
  python 05_finetune_diffusers/controlnet.py --use lllyasviel/sd-controlnet-canny --control canny --image photo.png --prompts "a red fox" --model ...
  python 05_finetune_diffusers/controlnet.py --use RUN                             draw the test edges, and measure again

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". The outputs of the copy enter the
U-Net's second half through convolutions that are zero in the beginning, so at the first step the model draws exactly
as before. The edges have the size of the image and the U-Net that of the latents, so a small network shrinks them f
times: diffusers' default is made for f = 8, and would fail here, where f = 4. Opened by plain diffusers:

  net = ControlNetModel.from_pretrained("runs/05_finetune_diffusers/controlnet-creatures/controlnet")
  pipe = StableDiffusionControlNetPipeline.from_pretrained(MODEL, controlnet=net)
"""

from common.cli import run
from common.errors import UserError
from finetune_diffusers.training.flags import ControlNetFlags as Args
from finetune_diffusers.training.flags import Preset, SizePresets, checked

PRESETS = SizePresets(
    small=Preset(steps=1500, batch_size=16, lr=1e-3), large=Preset(steps=10_000, batch_size=4, lr=1e-5)
)


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
        controlnet.draw_with_controlnet(args, args.use)
    else:
        controlnet.train_controlnet(args, PRESETS)


if __name__ == "__main__":
    run(main, Args)

"""Full fine-tuning: every weight of the U-Net goes on learning, the autoencoder and the text encoder stay as they are.

  python 05_finetune_diffusers/finetune.py                                   creatures as riso prints, on the course's own model
  python 05_finetune_diffusers/finetune.py --style woodcut --n 200
  python 05_finetune_diffusers/finetune.py --data dishes --style none
  python 05_finetune_diffusers/finetune.py --data my/photos --random-flip --buckets              your pictures, in their own shapes
  python 05_finetune_diffusers/finetune.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --data pokemon --checkpointing --ema 0
  python 05_finetune_diffusers/finetune.py --model 02_cfg_pokemon/pretrained --style neon        a pixel model
  python 05_finetune_diffusers/finetune.py --resume runs/05_finetune_diffusers/finetune-creatures-riso
  torchrun --nproc_per_node 2 -- 05_finetune_diffusers/finetune.py --n 200     several processes or GPUs; mind the separate --

Without the -- torchrun would read --n as an option of its own.
"""

from common.cli import run
from finetune_diffusers.training.flags import Preset, SizePresets, checked
from finetune_diffusers.training.flags import StyleFlags as Args

PRESETS = SizePresets(
    small=Preset(steps=1500, batch_size=16, lr=3e-4), large=Preset(steps=2000, batch_size=4, lr=1e-5)
)


def main(args: Args) -> None:
    args = checked(args)
    from finetune_diffusers.training.finetune import finetune

    finetune(args, PRESETS, "riso")


if __name__ == "__main__":
    run(main, Args)

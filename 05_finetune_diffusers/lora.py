"""LoRA: the U-Net stays as it is, and beside some of its matrices W a product of two thin ones
is learned: W + scale B A.

  python 05_finetune_diffusers/lora.py                                       creatures as woodcuts, an adapter of some 100 kB
  python 05_finetune_diffusers/lora.py --style blueprint --rank 8
  python 05_finetune_diffusers/lora.py --data my/photos --model stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --ema 0
  python 05_finetune_diffusers/lora.py --resume runs/05_finetune_diffusers/lora-creatures-woodcut
  python 05_finetune_diffusers/lora.py --use runs/05_finetune_diffusers/lora-creatures-woodcut/creatures-woodcut.safetensors
  python 05_finetune_diffusers/lora.py --use A.safetensors B.safetensors --scale 0 0.5 1      two adapters mixed, every pair of scales
  python 05_finetune_diffusers/lora.py --use A.safetensors B.safetensors --scale 0.8 0.4 --fuse runs/fused      added to the model's weights
  python 05_finetune_diffusers/lora.py --use A.safetensors --output-kohya-format              as A-kohya.safetensors, for the webui

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". An adapter is opened by plain diffusers:

  pipe = StableDiffusionPipeline.from_pretrained(MODEL)
  pipe.load_lora_weights("runs/05_finetune_diffusers/lora-creatures-woodcut", weight_name="creatures-woodcut.safetensors")
  pipe("a red creature, in the style of a woodcut", cross_attention_kwargs={"scale": 0.8})
"""

from common.cli import run
from common.errors import UserError
from finetune_diffusers.training.flags import LoraFlags as Args
from finetune_diffusers.training.flags import Preset, SizePresets, checked

PRESETS = SizePresets(
    small=Preset(steps=1500, batch_size=16, lr=3e-3), large=Preset(steps=1500, batch_size=4, lr=1e-4)
)


def main(args: Args) -> None:
    if args.use and args.resume:
        raise UserError("--resume goes on with a training and --use draws without one; give one of them")
    if args.fuse and not args.use:
        raise UserError("--fuse goes with --use, which names the adapters to add to the model")
    args = checked(args)
    from finetune_diffusers.training import finetune, lora

    if args.use:
        lora.draw_with_adapters(args)
    else:
        finetune.finetune(args, PRESETS, "woodcut", args.rank, args.alpha, args.targets)


if __name__ == "__main__":
    run(main, Args)

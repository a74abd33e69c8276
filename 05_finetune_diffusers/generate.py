"""Draws with a text-to-image model: prompts to pictures, pictures to pictures, and schedulers side by side.

  python 05_finetune_diffusers/generate.py "a red creature with bat wings" --n 8 --seed 7
  python 05_finetune_diffusers/generate.py "番茄炒蛋" --negative "a table" --guidance 6 --size 96x64
  python 05_finetune_diffusers/generate.py "a blue creature" --compare ddim,dpm++,euler-a --steps 20
  python 05_finetune_diffusers/generate.py "a green creature with two horns" --image drawing.png --strength 0.6
  python 05_finetune_diffusers/generate.py "a red fox" --model downloads/model.safetensors --low-memory      a checkpoint in one file
  python 05_finetune_diffusers/generate.py "a red fox, oil painting" --variant fp16 --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda

Without --model it is the small Stable Diffusion of chapter 4. A model keeps the scheduler that it was saved with unless
--scheduler names another: distilled models need their own. Flow-matching models such as Stable Diffusion 3 work with
euler, dpm++ and unipc.
Writes every picture as a PNG of its own, and a contact sheet.
"""

from common.cli import run
from finetune_diffusers.flags import GenerateFlags as Args


def main(args: Args) -> None:
    from finetune_diffusers.generation import generate

    generate(args)


if __name__ == "__main__":
    run(main, Args)

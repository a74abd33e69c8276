"""LoRA: the U-Net stays as it is, and beside some of its matrices W a product of two thin ones
is learned: W + scale B A.

  python 05_finetune_diffusers/lora.py                                       creatures as woodcuts, an adapter of some 100 kB
  python 05_finetune_diffusers/lora.py --style blueprint --rank 8
  python 05_finetune_diffusers/lora.py --resume runs/05_finetune_diffusers/lora-creatures-woodcut
  python 05_finetune_diffusers/lora.py --use runs/05_finetune_diffusers/lora-creatures-woodcut/creatures-woodcut.safetensors
  python 05_finetune_diffusers/lora.py --use A.safetensors B.safetensors --scale 0 0.5 1      two adapters mixed, every pair of scales

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". An adapter is opened by plain diffusers:

  pipe = StableDiffusionPipeline.from_pretrained(MODEL)
  pipe.load_lora_weights("runs/05_finetune_diffusers/lora-creatures-woodcut", weight_name="creatures-woodcut.safetensors")
  pipe("a red creature, in the style of a woodcut", cross_attention_kwargs={"scale": 0.8})
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run
from common.errors import UserError
from finetune_diffusers.paths import OUT
from finetune_diffusers.training.flags import (
    ATTENTION,
    STYLE_PROMPTS,
    CaptionedFlags,
    Preset,
    SizePresets,
    Style,
    checked,
)

PRESETS = SizePresets(small=Preset(steps=600, batch_size=16, lr=3e-3), large=Preset(steps=1500, batch_size=4, lr=1e-4))


@dataclass(frozen=True)
class Args(CaptionedFlags):
    style: Style = "woodcut"
    """Style that every picture is put into, with its words at the end of every caption. none: the data as they are."""
    rank: int = 8
    """Width of the two thin matrices."""
    alpha: float | None = None
    """Numerator of the factor alpha / rank of the product; by default alpha is the rank."""
    targets: tuple[str, ...] = ATTENTION
    """Layers of the U-Net that get an adapter, by the ends of their names."""
    prompts: tuple[str, ...] = STYLE_PROMPTS
    """Validation prompts, drawn before, during and after the training;
    the words of the style are added at their end.
    """

    use: tuple[Path, ...] = ()
    """Adapters to draw the prompts with, instead of training:
    files (LoRA, LoCon, LoHa, LoKr, DoRA), run folders, or folders of PEFT.
    """
    scale: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Scales of the adapters, with --use: 0 is the model without them."""
    sheet: Path = OUT / "lora.png"
    """Contact sheet of --use."""


def main(args: Args) -> None:
    if args.use and args.resume:
        raise UserError("--resume goes on with a training and --use draws without one; give one of them")
    args = checked(args)
    from finetune_diffusers.training import finetune, lora

    if args.use:
        lora.draw_with_adapters(args, args.use, args.scale, args.style, args.prompts, args.sheet)
    else:
        finetune.finetune(args, args.style, args.prompts, PRESETS, args.rank, args.alpha, args.targets)


if __name__ == "__main__":
    run(main, Args)

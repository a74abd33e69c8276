"""Convert a Chinese CLIP between the formats of cn_clip and transformers, and check that its embeddings stay the same.

  python 06_inpaint_gif/convert_clip.py --clip pretrained --out clip_dishes.pt           for cn_clip
  python 06_inpaint_gif/convert_clip.py --clip my_finetuned.pt --out my_clip             a folder for transformers
  python 06_inpaint_gif/convert_clip.py --clip ViT-B-16 --out vit-b-16 --half

A name that ends in .pt becomes a checkpoint of cn_clip; CLIP(**checkpoint["config"]) with its "state_dict" is the
model. Any other name becomes a folder for ChineseCLIPModel.from_pretrained. Before anything is written, both libraries
load the weights, check every key, and encode some texts and images;
the largest difference between their unit vectors is printed.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    clip: str = "pretrained"
    """CLIP to convert: pretrained, a run folder, a folder of transformers, a checkpoint .pt, ViT-B-16, ..."""
    out: Path | None = None
    """Result: NAME.pt, or a folder."""
    half: bool = False
    """Half-precision numbers in a folder: half the size, about 1e-3 of accuracy."""


def main(args: Args) -> None:
    from inpaint_gif.clip.convert import convert

    convert(args.clip, args.out, args.half)


if __name__ == "__main__":
    run(main, Args)

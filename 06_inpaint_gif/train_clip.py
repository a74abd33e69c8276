"""Train a small Chinese CLIP on images of dishes and their names.

  python 06_inpaint_gif/train_clip.py                                the embedded dishes, 15 minutes
  python 06_inpaint_gif/train_clip.py --data my/photos --minutes 5       photographs of your own, with Chinese captions
  python 06_inpaint_gif/train_clip.py --data my/photos --start ViT-B-16 --lr 2e-5           fine-tune a published one
  python 06_inpaint_gif/train_clip.py --resume runs/06_inpaint_gif/clip-dishes

The run folder's model/ is a ChineseCLIPModel of `transformers`, which cn_clip opens as well (clip/model.py,
convert_clip.py). To evaluate it: python 06_inpaint_gif/evaluate_clip.py --clip runs/06_inpaint_gif/clip-dishes
"""

from pathlib import Path

from common.cli import run
from common.training.settings import settle
from inpaint_gif.clip.flags import CLIP_PRESETS
from inpaint_gif.clip.flags import CLIPFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.clip.trainer import check_architecture, train_clip

    check_architecture(args)
    train_clip(settle(args, CLIP_PRESETS, f"06_inpaint_gif/clip-{Path(args.data).stem}"))


if __name__ == "__main__":
    run(main, Args)

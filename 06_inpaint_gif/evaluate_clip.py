"""How well a Chinese CLIP knows the dishes: names find pictures, pictures find names.

  python 06_inpaint_gif/evaluate_clip.py                                        the shipped one
  python 06_inpaint_gif/evaluate_clip.py --clip runs/06_inpaint_gif/clip-dishes --backend transformers
  python 06_inpaint_gif/evaluate_clip.py --data my/photos --clip ViT-B-16             photographs and their captions
  python 06_inpaint_gif/evaluate_clip.py --ask 土鸡蛋炒番茄 宫保虾仁               what it makes of a name

All that it is asked about is new to it:

    test            dishes drawn with other seeds than those it has learned from
    heldout         dishes on a table on which it has never seen them
    held-out names  the last other name of each dish that has two or more; no caption of the training holds them

A picture is given to the dish whose names lie nearest, a name to the dish whose test pictures lie nearest (the mean of their
directions). top1: the right one is nearest; top5: among the nearest five; with 95 % bootstrap intervals over what was asked. The
same among 40 dishes, every other one of the menu. Guessing is right once in 80, or once in 40.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import pick_device, run
from common.errors import UserError


@dataclass(frozen=True)
class Args:
    clip: str = "pretrained"
    """pretrained, a run folder, a folder of transformers, a checkpoint .pt, or ViT-B-16 and its like."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    data: str = "dishes"
    """dishes, or any set of images with captions: its test split, each picture among all captions of the set."""
    data_dir: Path = Path("data")
    """Where local copies are looked for."""
    n: int = 1000
    """Pictures of each split."""
    ask: tuple[str, ...] = ()
    """Names: say what they are nearest to, and measure nothing."""
    out: Path | None = None
    """Also write the figures here, as JSON."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if args.ask and args.out:
        raise UserError("--ask measures nothing, so there is nothing to write to --out; leave one of them out")
    if args.out and args.out.suffix != ".json":
        raise UserError(f"--out must end in .json, not {args.out.name}")
    from inpaint_gif.clip.model import load_clip

    clip = load_clip(args.clip, args.backend, pick_device(args.device))
    print(f"{args.clip} through {clip.backend}: {clip.dim} dimensions, {clip.size} x {clip.size} pixels, temperature {1 / clip.scale:.3f}")
    if args.ask:
        answer(clip, args.ask)
        return
    results = measure(clip, args)
    width = max(map(len, results))
    print(f"{'':{width}}   asked  top1                  top5")
    for what, found in results.items():
        print(f"{what:{width}}  {found.queries:6,}  {interval(found.top1)}  {interval(found.top5)}")
    if args.out:
        from common.io.files import write_json

        figures = {what: {"queries": f.queries, "choices": f.choices, "top1": f.top1._asdict(), "top5": f.top5._asdict()} for what, f in results.items()}
        write_json(args.out, {"clip": args.clip, "backend": clip.backend, "data": args.data, "n": args.n, "results": figures})
        print(args.out)


def measure(clip, args: Args) -> dict:
    from common.data import load
    from inpaint_gif.clip.retrieval import caption_queries, found, judge

    if args.data == "dishes":
        return judge(clip, {split: load("dishes", max(16, min(clip.size, 256)), split=split, n=args.n) for split in ("test", "heldout")})
    from inpaint_gif.clip.trainer import chinese

    test, rest = (chinese(load(args.data, clip.size, args.data_dir, split, channels=3)) for split in ("test", "train"))
    known = {caption: (caption,) for caption in dict.fromkeys(test.captions + rest.captions)}
    return {f"pictures of {args.data}, {len(known)} captions": found(*caption_queries(clip, test.first(min(args.n, len(test))), known))}


def answer(clip, names: tuple[str, ...]) -> None:
    """What it makes of each name."""
    from inpaint_gif.clip.dish_names import take_order

    for name in names:
        order = take_order(clip, name)
        print(f"{order.text}: " + "、".join(f"{dish} ({cosine:.2f})" for dish, cosine in order.nearest))
        for remark in order.remarks:
            print(f"  {remark}")


def interval(value) -> str:
    """ " 91.5 % (89.8 to 93.1)" """
    return f"{100 * value.value:5.1f} % ({100 * value.low:.1f} to {min(100.0, 100 * value.high):.1f})".ljust(22)


if __name__ == "__main__":
    run(main, Args)

"""Draw what the words say.

  python 02_cfg_pokemon/sample.py "a red creature with wings"
  python 02_cfg_pokemon/sample.py "一只绿色的草属性小怪兽" --n 16 --guidance 5 --negative "wings"
  python 02_cfg_pokemon/sample.py "a blue ghost creature" --sweep 0,1,2,4,8
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    prompts: Positional[tuple[str, ...]]
    """What to draw, in English or Chinese; each prompt gets n pictures. "" means: whatever you like."""
    model: Path = PRETRAINED
    """A run folder, or the folder of a text-to-image model of pixels. By default the shipped model of creatures."""
    n: int = 8
    """Pictures of each prompt."""
    guidance: float = 3.0
    """Guidance scale w, 0 or more; 1 is off."""
    sweep: str | None = None
    """Instead of one scale, several: 1,2,4,8 draws a row for each, from the same noise."""
    negative: str = ""
    """What is not wanted: it takes the place of the empty caption."""
    rescale: float = 0.0
    """Guidance rescale, 0 (off) to 1: against overdone contrast."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How the guessed image is kept in [-1, 1]."""
    interval: tuple[float, float] = (0.0, float("inf"))
    """Guide only where low < sigma / alpha <= high."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ddpm:250, heun:18, ..."""
    seed: int = 0
    """The same seed gives the same pictures."""
    out: Path = Path("runs/02_cfg_pokemon/samples.png")
    """Where the grid goes."""
    gif: bool = False
    """Also write an animated GIF of the reverse process beside it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError('give a prompt, for instance "a red creature with wings"; "" samples without a prompt')
    scales = read_scales(args.sweep) if args.sweep else (args.guidance,)
    device = pick_device(args.device)

    import time

    from cfg_pokemon.pipeline import Wish, open_painter
    from common import viz

    painter = open_painter(args.model, device)
    clip = {"static": True, "none": False, "dynamic": "dynamic"}[args.clip]
    wishes = [Wish(w, args.negative, args.sampler, args.rescale, args.interval, clip, args.seed) for w in scales]
    remark(painter, args)
    began, rows, frames = time.perf_counter(), [], []
    for prompt in args.prompts:
        for wish in wishes:
            moments = painter.frames([prompt] * args.n, wish)
            rows.append(moments[-1])
            frames.append(moments)
    seconds = time.perf_counter() - began

    import torch

    print(viz.save_picture(viz.grid(torch.cat(rows), args.n, 100 * len(rows)), args.out))
    for number, (prompt, wish) in enumerate(((p, w) for p in args.prompts for w in wishes), 1):
        print(f"  row {number}: w = {wish.w:g}  {prompt or '(no words)'}")
    if args.gif:
        moments = [torch.cat(parts) for parts in zip(*frames, strict=True)]
        print(viz.save_gif(moments, args.out.with_suffix(".gif"), columns=args.n, height=100 * len(rows)))
    print(f"{args.n * len(rows)} pictures, {args.sampler}, in {seconds:.1f} s on {device}")


def read_scales(text: str) -> tuple[float, ...]:
    """'1,2,4' -> (1.0, 2.0, 4.0)"""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"cannot read --sweep {text}; write guidance scales with commas between them, as in 1,2,4,8") from None


def remark(painter, args: Args) -> None:
    """Say what the user should know of each prompt."""
    import sys

    for prompt in (*args.prompts, *([args.negative] if args.negative else [])):
        for sentence in painter.remarks(prompt):
            print(f"note: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    run(main, Args)

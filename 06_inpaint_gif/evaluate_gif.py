"""What the networks of this chapter reach: dishes recognised, edges unseen, cameras that go where they were told.

  python 06_inpaint_gif/evaluate_gif.py                                    all three, of what is shipped
  python 06_inpaint_gif/evaluate_gif.py --only holes --engines inpaint repaint reflect --n 100
  python 06_inpaint_gif/evaluate_gif.py --only dishes --dish runs/06_inpaint_gif/text2dish-dishes --guidance 3

dishes  pictures of every dish of the menu; the image half of a CLIP, which the model never looked through, says what they are
holes   test pictures with holes as a camera leaves them: how visible the edges are, beside pictures that nobody has touched
moves   a film of each move: in how many frames phase correlation finds the direction that was asked for
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli import pick_device, run
from common.errors import UserError
from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    only: tuple[Literal["dishes", "holes", "moves"], ...] = ("dishes", "holes", "moves")
    """What to measure."""
    dish: Path | None = None
    """What draws the dish: a run of train_text2dish.py. By default the shipped one."""
    clip: str | None = None
    """What reads the names; by default the one that the dish was trained with."""
    judge: str | None = None
    """The CLIP that says what a picture shows; by default the same."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    engines: tuple[Literal["inpaint", "repaint", "controlnet", "nearest", "reflect"], ...] = ("inpaint", "repaint", "controlnet", "reflect", "nearest")
    """What paints the holes; the first one paints the moves, too."""
    inpaint: Path | None = None
    """The network of the engine inpaint; by default the shipped one."""
    controlnet: Path | None = None
    """The ControlNet of the engine of that name, a run of train_controlnet.py; by default the shipped one."""
    guidance: float = 5.0
    """Guidance scale while the dish is drawn."""
    paint_guidance: float = 2.0
    """Guidance scale while holes are painted."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ..."""
    n: int = 40
    """Pictures with a hole for each engine; of each dish a tenth of it, at least one."""
    frames: Annotated[int, Range(3, 10_000)] = 24
    """Of the film of each move."""
    out: Path | None = None
    """Also write the figures here, as JSON."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if args.out and args.out.suffix != ".json":
        raise UserError(f"--out must end in .json, not {args.out.name}")
    from inpaint_gif.clip.model import load_clip
    from inpaint_gif.inpainting.backends import DEFAULTS
    from inpaint_gif.inpainting.pipeline import How, check_draws, clip_of, open_artist

    device, folder = pick_device(args.device), args.dish or DEFAULTS["repaint"]
    if not folder.exists():
        raise UserError(f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --dish")
    clip = clip_of(folder, device, args.clip, args.backend)
    artist, judge = open_artist(folder, device, clip), load_clip(args.judge, args.backend, device) if args.judge else clip
    check_draws(folder, artist)
    painters = engines_of(args, clip, folder, device) if {"holes", "moves"} & set(args.only) else {}
    figures = {}
    if "dishes" in args.only:
        figures["dishes"] = tell_dishes(args, artist, judge, How(args.guidance, sampler=args.sampler))
    if "holes" in args.only:
        figures["holes"] = tell_holes(args, artist.size, painters)
    if "moves" in args.only:
        figures["moves"] = tell_moves(args, artist, painters)
    if args.out:
        from common.io.files import write_json

        write_json(args.out, {"dish": str(folder), "seed": args.seed, "n": args.n, "device": device, **figures})
        print(args.out)


def engines_of(args: Args, clip, folder: Path, device: str) -> dict:
    from inpaint_gif.inpainting.backends import Settings, open_engine
    from inpaint_gif.inpainting.pipeline import How

    models = {"inpaint": args.inpaint and str(args.inpaint), "repaint": str(folder)}
    nets = {"controlnet": args.controlnet and str(args.controlnet)}
    how = How(args.paint_guidance, sampler=args.sampler)
    return {name: open_engine(Settings(name, models.get(name), nets.get(name), how, device, clip)) for name in args.engines}


def tell_dishes(args: Args, artist, judge, how) -> dict:
    from inpaint_gif.animation.metrics import recognised

    found, result = recognised(artist, judge, how, max(1, args.n // 10), args.seed), {}
    width = max(map(len, found))
    print(f"{'':{width}}   asked  named rightly")
    for what, f in found.items():
        print(f"{what:{width}}  {f.queries:6,}  {interval(f.top1, 100)} %")
        result[what] = {"queries": f.queries, "choices": f.choices, "top1": f.top1._asdict()}
    return result


def tell_holes(args: Args, size: int, painters: dict) -> dict:
    from train_inpaint import Args as Training

    from inpaint_gif.animation.metrics import edges, untouched
    from inpaint_gif.training.inpaint import test_holes

    test = test_holes(Training(seed=args.seed), size, args.n)
    floor, result = untouched(test), {}
    print(f"\n{'engine':10}  {'seam':22}  {'error in the hole':22}  known pixels  seconds a hole")
    print(f"{'untouched':10}  {interval(floor)}")
    for name, engine in painters.items():
        e = edges(engine, test, args.seed)
        print(f"{name:10}  {interval(e.seam):22}  {interval(e.error):22}  {'exact' if e.exact else 'CHANGED':12}  {e.seconds:.2f}")
        result[name] = {"seam": e.seam._asdict(), "error": e.error._asdict(), "exact": e.exact, "seconds": e.seconds}
    return {"untouched": {"seam": floor._asdict()}, **result}


def tell_moves(args: Args, artist, painters: dict) -> dict:
    from inpaint_gif.animation.camera import MOVES
    from inpaint_gif.animation.metrics import went
    from inpaint_gif.inpainting.pipeline import How

    name, engine = next(iter(painters.items()))
    picture = artist.draw(["番茄炒蛋"], How(args.guidance, sampler=args.sampler), args.seed)[0]
    result = {}
    print(f"\n{'move':12}  frames that go the right way ({name})    known pixels  seconds")
    for move in MOVES:
        w = went(picture, move, engine, "番茄炒蛋", args.frames, args.seed)
        print(f"{move:12}  {w.right:3} of {w.frames:3}{'':29}  {'exact' if w.exact else 'CHANGED':12}  {w.seconds:.1f}")
        result[move] = w._asdict()
    return result


def interval(value, times: float = 1.0) -> str:
    """ "1.12 (1.05 to 1.20)" """
    return f"{times * value.value:.2f} ({times * value.low:.2f} to {times * value.high:.2f})"


if __name__ == "__main__":
    run(main, Args)

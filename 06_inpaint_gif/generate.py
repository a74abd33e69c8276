"""Draw a dish with more say in it: other words at other places, other words and other guidance as the steps go on.

  python 06_inpaint_gif/generate.py "番茄炒蛋" --region "right:葱油生菜"                   two dishes on one plate
  python 06_inpaint_gif/generate.py "番茄炒蛋" --region "0.3,0.3,0.7,0.7:米饭" --guidance "8>2"
  python 06_inpaint_gif/generate.py "米饭" --then "0.2:番茄炒蛋"                       the table of one, the dish of another
  python 06_inpaint_gif/generate.py "a bowl of rice" --model 04_latent_sd/pretrained --sweep-then "a red fire creature"

Writes a row of pictures without any of this, and below it the same noise with it. --keep NAME.png keeps the first one of the lower row: a
film begins with it if it is given to make_gif.py --image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError
from common.io.progress import with_progress

KINDS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Args:
    name: Positional[str]
    """What is drawn where nothing else is said."""
    region: tuple[str, ...] = ()
    """PLACE:WORDS, several if you like: a place is left, right, top, bottom, middle, or left,top,right,bottom in shares of the picture."""
    then: tuple[str, ...] = ()
    """SHARE:WORDS, several if you like: from that share of the steps on, these words instead of the name."""
    sweep_then: str | None = None
    """Instead: these words from 0.8, 0.6, 0.4, 0.2 of the steps on, a row for each."""
    guidance: str = "5"
    """Guidance scale, or two of them, 8>2: from the first at the noise to the last at the picture."""
    negative: str = ""
    """What is not wanted."""
    model: Path | None = None
    """What draws: a run of train_text2dish.py, or any latent model that reads. By default the shipped one."""
    clip: str | None = None
    """What reads the names; by default the one that the model was trained with."""
    backend: Literal["cn_clip", "transformers"] = "cn_clip"
    """Backend that computes the vectors; both give the same numbers, to about 1e-7."""
    n: int = 8
    """Pictures in a row."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ..."""
    soft: float = 2.0
    """Latents over which a region gives way to the rest."""
    out: Path = Path("runs/06_inpaint_gif/control.png")
    """Where the rows go."""
    keep: Path | None = None
    """Keep the first picture drawn under control as a file of its own."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    for picture in (args.out, args.keep):  # now, for one of them would be written before the other
        if picture and picture.suffix.lower() not in KINDS:
            raise UserError(f"cannot tell the kind of picture from the name {picture.name}; end it in {', '.join(KINDS)}")
    if args.keep and args.keep.resolve() == args.out.resolve():
        raise UserError(f"--keep {args.keep} would be written over the rows of --out; choose another name")
    if args.sweep_then is not None and (args.then or args.region):
        raise UserError("--sweep-then replaces --then and --region; leave those out")
    from inpaint_gif.inpainting.regional_prompts import Place, read_guidance, read_stage

    places, stages, scale = [Place.parse(text) for text in args.region], [read_stage(text) for text in args.then], read_guidance(args.guidance)
    if len({share for share, _ in stages}) < len(stages):
        raise UserError("two of --then begin at the same share of the steps")
    import torch

    from common import viz
    from inpaint_gif.inpainting.backends import DEFAULTS
    from inpaint_gif.inpainting.pipeline import READS, How, check_draws, clip_of, find_root, open_artist

    device, folder = pick_device(args.device), args.model or DEFAULTS["repaint"]
    if not args.model and not folder.exists():
        raise UserError(f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --model")
    clip = clip_of(folder, device, args.clip, args.backend) if (find_root(folder) / READS).exists() else None
    artist = open_artist(folder, device, clip)
    check_draws(folder, artist)
    if clip:
        tell(clip, [args.name, *(place.words for place in places), *(words for _, words in stages), args.sweep_then or ""])
    how = How(scale[0], args.negative, args.sampler)
    ways = [([], [(0.2 * k, args.sweep_then)]) for k in (4, 3, 2, 1)] if args.sweep_then is not None else [(places, stages)]
    rows = [drawn(artist, how, (scale[0], scale[0]), args.name, [], [], args)]
    rows += [drawn(artist, how, scale, args.name, places, stages, args) for places, stages in ways]
    print(viz.save_picture(viz.grid(torch.cat(rows), args.n, 130 * len(rows)), args.out))
    if args.keep:
        print(viz.save_picture(viz.grid(rows[1][:1], 1, gap=0), args.keep))


def tell(clip, names) -> None:
    """What there is to say about names, as make_gif.py does."""
    import sys

    from inpaint_gif.clip.dish_names import take_order

    for remark in dict.fromkeys(remark for name in names if name.strip() for remark in take_order(clip, name).remarks):
        print(f"note: {remark}", file=sys.stderr)


def drawn(artist, how, scale, name: str, places, stages, args: Args):
    """n pictures of one way of control. (n, C, S, S)"""
    from dataclasses import replace

    from inpaint_gif.inpainting.regional_prompts import changing, in_regions, in_stages, progress_on, weights

    progress, side = progress_on(artist.noise_levels(how)), artist.size // artist.factor
    guided = replace(how, w=changing(*scale, progress) if scale[0] != scale[1] else scale[0])
    told = lambda words: artist.guided([words] * args.n, guided)  # noqa: E731
    rest = in_stages([(0.0, told(name)), *((share, told(words)) for share, words in stages)], progress) if stages else told(name)
    shares = [weight.to(artist.device) for weight in weights(places, side, side, args.soft)]
    denoise = in_regions([(each, share) for each, share in zip([rest, *(told(place.words) for place in places)], shares, strict=True) if share.any()])
    steps = artist.denoised(denoise, args.n, how, (side, side), (args.seed, 0))
    *_, last = with_progress("drawing", steps, len(artist.noise_levels(how)), unit="step")
    return artist.decode(last.x)


if __name__ == "__main__":
    run(main, Args)

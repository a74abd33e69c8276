"""Draw what the words say: from noise, or from a picture.

  python 04_latent_sd/sample.py "番茄炒蛋"
  python 04_latent_sd/sample.py "a red fire creature" --n 8 --guidance 5 --negative "wings"
  python 04_latent_sd/sample.py "一盘葱油生菜" --sweep 1,2,4,8
  python 04_latent_sd/sample.py "a blue ghost creature" --image creature.png --strength 0.6
  python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5 --n 1 --guidance 7.5 --sampler ddim:50
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    prompts: Positional[tuple[str, ...]]
    """What to draw, in the languages of the model; each prompt gets n pictures. "" means: whatever you like."""
    model: Path = PRETRAINED
    """A run folder, a Stable Diffusion 1.x or 2.x folder, or a checkpoint in one file (.safetensors, .ckpt). By default the shipped model of creatures and dishes."""
    n: int = 8
    """Pictures of each prompt."""
    guidance: float = 5.0
    """Guidance scale w, 0 or more; 1 is off."""
    sweep: str | None = None
    """Instead of one scale, several: 1,2,4,8 draws a row for each, from the same noise."""
    negative: str = ""
    """What is not wanted: it takes the place of the empty caption."""
    image: Path | None = None
    """Begin with this picture instead of noise; it is shown at the left of every row."""
    strength: float | None = None
    """How far the picture is noised first, above 0 to 1: 0.2 changes little, 0.9 forgets most of it. By default 0.6."""
    rescale: float = 0.0
    """Guidance rescale, 0 (off) to 1: against overdone contrast."""
    interval: tuple[float, float] = (0.0, float("inf"))
    """Guide only where low < sigma / alpha <= high."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ddpm:250, heun:18, ..."""
    size: int | None = None
    """Pixels a side; by default what the model was trained for."""
    seed: int = 0
    """The same seed gives the same pictures."""
    out: Path = Path("runs/04_latent_sd/samples.png")
    """Where the grid goes."""
    gif: bool = False
    """Also write an animated GIF of the reverse process, as the decoder sees it, beside the grid."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError('say what to draw, for instance "番茄炒蛋" or "a red creature with wings"; "" draws whatever comes')
    if args.strength is not None and args.image is None:
        raise UserError("--strength needs a picture to begin with; give it with --image")
    scales = read_scales(args.sweep) if args.sweep else (args.guidance,)
    device = pick_device(args.device)

    import time

    import torch

    from common import viz
    from latent_sd.pipeline import Wish, open_pipeline

    pipeline = open_pipeline(args.model, device)
    wishes = [Wish(w, args.negative, args.sampler, args.rescale, args.interval, args.size, args.seed) for w in scales]
    image = read_image(args.image, pipeline, args.size) if args.image else None
    remark(pipeline, args)
    began = time.perf_counter()
    rows = [moments(pipeline, prompt, wish, args, image) for prompt in args.prompts for wish in wishes]  # each a list of (n, C, S, S)
    seconds = time.perf_counter() - began

    left = 0 if image is None else 1
    frames = [torch.cat([with_left(row, image) for row in parts]) for parts in zip(*rows, strict=True)]
    print(viz.save_picture(viz.grid(frames[-1], args.n + left, 130 * len(rows)), args.out))
    for number, (prompt, wish) in enumerate(((p, w) for p in args.prompts for w in wishes), 1):
        print(f"  row {number}: w = {wish.w:g}  {prompt or '(no words)'}")
    if args.gif:
        print(viz.save_gif(frames, args.out.with_suffix(".gif"), columns=args.n + left, height=130 * len(rows)))
    print(f"{args.n * len(rows)} pictures, {args.sampler}, in {seconds:.1f} s on {device}")


def moments(pipeline, prompt: str, wish, args: Args, image) -> list:
    """n pictures of one prompt: with --gif after every step of the reverse process, else after the last. Each (n, C, S, S)."""
    import torch

    from common.io.progress import with_progress
    from latent_sd.pipeline import batches

    parts = []
    for part in with_progress("drawing", list(batches(args.n)), unit="batch"):
        prompts = [prompt] * (part.stop - part.start)
        if image is None:
            steps = pipeline.txt2img_steps(prompts, wish, part.start)
        else:
            steps = pipeline.img2img_steps(image, prompts, 0.6 if args.strength is None else args.strength, wish, part.start)
        latents = [step.x for step in steps]
        parts.append([pipeline.decode(z) for z in (latents if args.gif else latents[-1:])])
    return [torch.cat(same_moment) for same_moment in zip(*parts, strict=True)]


def with_left(row, image):
    """The picture that it began with, if there is one, before the pictures (n, C, S, S)."""
    import torch

    return row if image is None else torch.cat([image, row])


def read_image(path: Path, pipeline, size: int | None):
    """The picture as the model wants it: a square from its middle. (1, C, S, S)"""
    from common.data.sources.decoding import decode_all
    from common.io.pixels import to_float

    if not path.is_file():
        raise UserError(f"there is no image file {path}")
    cfg = pipeline.vae.cfg
    return to_float(decode_all([path], pipeline.latent_side(size) * cfg.factor, channels=cfg.image_channels)[0])


def read_scales(text: str) -> tuple[float, ...]:
    """'1,2,4' -> (1.0, 2.0, 4.0)"""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"cannot read --sweep {text}; write guidance scales separated by commas, as in 1,2,4,8") from None


def remark(pipeline, args: Args) -> None:
    """Say what the user should know of each prompt."""
    import sys

    for prompt in (*args.prompts, *([args.negative] if args.negative else [])):
        for sentence in pipeline.remarks(prompt):
            print(f"note: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    run(main, Args)

"""Repair pictures with a text-to-image model: take away a mosaic, noise or scratches, and measure what helps.

  python 05_finetune_diffusers/restore.py                                      a mosaic over held-out creatures; the whole study
  python 05_finetune_diffusers/restore.py --damage scratch --method inpaint
  python 05_finetune_diffusers/restore.py --damage noise --noise 0.3 --strength 0.2 0.3 0.4 0.5
  python 05_finetune_diffusers/restore.py --image photo.png --mask where.png --prompt "a red creature" --damaged
  python 05_finetune_diffusers/restore.py --model stable-diffusion-v1-5/stable-diffusion-inpainting --method inpaint --image photo.png ...

Two ways. img2img takes the whole damaged picture part of the way back to noise and draws it again; inpaint does so under the mask
alone, and shows the network the rest of the picture, freshly noised, at every step. Afterwards known pixels are put back.

Writes study.csv (every setting, with errors over the pictures), study.png, a labelled grid.png, and what two passes in a row give.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from common.cli import pick_device, run
from common.errors import UserError, enough_memory
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.models import OUT, PRETRAINED, check_schedulers, read_size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from common.data.sources.mask import Mask

Method = Literal["img2img", "inpaint"]
AGAIN = 0.3  # strength of a second pass
AUTOENCODER = "through the autoencoder"  # what no repair can beat; far out of the scale of the plot


@dataclass(frozen=True)
class Args:
    damage: Literal["mosaic", "noise", "scratch"] = "mosaic"
    """What is done to the pictures."""
    method: tuple[Method, ...] = ("img2img", "inpaint")
    """Ways to repair them."""
    strength: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """How far back to noise, above 0 to 1; several are compared."""
    guidance: Annotated[tuple[float, ...], Range(1, 1000, 3, hint="1 is off")] = (1.0, 3.0, 7.5)
    """Guidance scales, 1 or more; several are compared."""
    steps: Annotated[tuple[int, ...], SAMPLER_STEPS] = (10, 30)
    """Steps from pure noise; a strength of 0.4 takes 0.4 of them. Several are compared."""
    scheduler: str = "dpm++"
    """ddim, dpm++, euler-a, ...: see generate.py."""
    model: str = str(PRETRAINED)
    """The folder of a pipeline, a run folder, a checkpoint in one file, or a hub id; one for inpainting (9 channels) does --method inpaint."""

    n: int = 8
    """Pictures; with --image, attempts."""
    split: Literal["test", "heldout"] = "test"
    """Creatures never trained on: of the kind that were, or combinations that never were."""
    image: Path | None = None
    """Your own picture instead of creatures."""
    mask: Path | None = None
    """With --image: a picture of its size, white where it is to be repaired; or strokes on a transparent layer; or the picture itself with a
    transparent hole. mask.png shows how it was understood."""
    prompt: str = ""
    """With --image: what it shows."""
    damaged: bool = False
    """With --image: it is damaged already. Then nothing is added, and there is no truth to compare with."""
    size: str | None = None
    """With --image: pixels, 64 or 96x64, to which it is cut; by default what the model was trained on."""

    block: int = 8
    """Pixels a side of the mosaic's blocks."""
    share: float = 0.6
    """Of each side that the mosaic covers."""
    noise: Annotated[float, Range(0, 100, 0.4, above=True)] = 0.4
    """Standard deviation of the noise; pictures reach from -1 to 1."""
    scratches: int = 6
    """How many scratches."""
    seed: int = 0
    """Of the damage, and of the first picture's repair."""
    out: Path = OUT / "restore"
    """The folder that tables and pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


class Work(NamedTuple):
    """What there is to repair."""

    damaged: "Tensor"        # (N, 3, H, W) in [-1, 1]
    mask: "Tensor"           # (N, 1, H, W), 1 where it is to be repaired
    prompts: list[str]       # N
    truth: "Tensor | None"   # (N, 3, H, W), where it is known


class How(NamedTuple):
    """One setting of the study."""

    method: Method
    strength: float
    guidance: float
    steps: int


def check(args: Args) -> None:
    check_schedulers([args.scheduler])
    if int(min(args.steps) * min(args.strength)) < 1:
        raise UserError(f"--strength {min(args.strength):g} of {min(args.steps)} steps is less than one step; give more --steps or more --strength")
    if args.image is None and (args.mask or args.prompt or args.damaged or args.size):
        raise UserError("--mask, --prompt, --damaged and --size speak of your own picture; name it with --image")
    if args.damaged and args.mask is None and args.method != ("img2img",):
        raise UserError("inpainting must know where the picture is damaged: give --mask, or only --method img2img")


def main(args: Args) -> None:
    check(args)
    device, began = pick_device(args.device), time.monotonic()

    import torch

    from finetune_diffusers.models import native_size, need_unet, open_pipeline, use_scheduler
    from finetune_diffusers.training.memory_usage import in_all

    size = read_size(args.size) if args.size else None
    files = read_files(args) if args.image else None  # bad ones are refused before a model is opened
    pipe = open_pipeline(args.model, "inpaint", device)
    need_unet(pipe, args.model)
    use_scheduler(pipe, args.scheduler)
    work = own_picture(args, *files, size or (native_size(pipe),) * 2) if files else creatures(args, native_size(pipe))
    if files and files[1]:
        show_mask(args, files[1])
    study(args, pipe, work, device)
    print(in_all(time.monotonic() - began, torch.device(device)))


# ---------------------------------------------------------------------------------------------------------- what to repair


def creatures(args: Args, size: int) -> Work:
    """Drawn creatures that no model of the course was trained on, damaged, with their captions."""
    from common.data import load
    from common.io.pixels import to_float
    from finetune_diffusers.data.degradations import spoil, where

    images = load("creatures", size, split=args.split, language="en", n=args.n)
    truth = to_float(images.pixels)
    mask = where(args.damage, args.n, *truth.shape[-2:], args.share, args.scratches, args.seed)
    return Work(spoil(truth, mask, args.damage, args.block, args.noise, args.seed), mask, list(images.captions), truth)


def read_files(args: Args) -> "tuple[Image.Image, Mask | None]":
    """The picture of --image and, where there is one, the mask of --mask."""
    from common.data.sources.decoding import open_rgb
    from common.data.sources.mask import read_mask
    from finetune_diffusers.data.degradations import fitting_mask

    picture = open_rgb(args.image)
    return picture, fitting_mask(read_mask(args.mask), args.mask, args.image, picture.size) if args.mask else None


def show_mask(args: Args, mask: "Mask") -> None:
    """The mask as it was understood: its share in words, and a picture of it beside the results."""
    import sys

    from common.io.files import write_atomically

    for note in mask.notes:
        print(f"note: {note}", file=sys.stderr)
    path = args.out / "mask.png"
    write_atomically(path, lambda file: mask.image.save(file, "PNG"))
    print(f"{path}: {mask}")


def own_picture(args: Args, picture: "Image.Image", given: "Mask | None", size: tuple[int, int]) -> Work:
    """The picture cut to the size, n times: each attempt has a seed of its own."""
    import torch
    from PIL import Image, ImageOps

    from finetune_diffusers.data.degradations import spoil, where
    from finetune_diffusers.models import to_tensor

    image = to_tensor(ImageOps.fit(picture, size, Image.Resampling.LANCZOS)).repeat(args.n, 1, 1, 1)
    if given:
        mask = (to_tensor(ImageOps.fit(given.image, size, Image.Resampling.BOX)) > -0.99).float().repeat(args.n, 1, 1, 1)
    elif args.damaged:
        mask = torch.ones_like(image[:, :1])
    else:
        mask = where(args.damage, 1, *image.shape[-2:], args.share, args.scratches, args.seed).repeat(args.n, 1, 1, 1)
    if args.damaged:
        return Work(image, mask, [args.prompt] * args.n, None)
    return Work(spoil(image, mask, args.damage, args.block, args.noise, args.seed), mask, [args.prompt] * args.n, image)


# ------------------------------------------------------------------------------------------------------------ repairing it


def repair(pipe, work: Work, how: How, seed: int, start: "Tensor | None" = None, latents: bool = False) -> "Tensor":
    """(N, 3, H, W) in [-1, 1] on the CPU, known pixels put back; or the latents, as another pipeline takes them.

    start  what to begin from instead of the damaged pictures: pictures (N, 3, H, W) in [-1, 1], or latents
    """
    from finetune_diffusers.data.degradations import put_back, whole_blocks
    from finetune_diffusers.models import as_task, generators, to_images

    begin = work.damaged if start is None else start
    if begin.shape[1] == 3:
        begin = (begin + 1) / 2  # diffusers takes tensors of pictures in [0, 1]
    wish = {
        "prompt": work.prompts,
        "image": begin,
        "strength": how.strength,
        "guidance_scale": how.guidance,
        "num_inference_steps": how.steps,
        "generator": generators(seed, len(work.prompts)),
        "output_type": "latent" if latents else "pt",
    }
    if how.method == "inpaint":
        height, width = work.damaged.shape[-2:]
        result = pipe(**wish, mask_image=whole_blocks(work.mask, pipe.vae_scale_factor), height=height, width=width).images
    else:
        other = as_task(pipe, "image")
        other.set_progress_bar_config(disable=True)
        result = other(**wish).images
    if latents:
        return result
    return put_back(to_images(result, type(pipe.scheduler).__name__), work.damaged, work.mask)


def settings(args: Args, pipe, work: Work) -> list[How]:
    """Every setting of the study."""
    methods = list(dict.fromkeys(args.method))
    if "img2img" in methods and pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise UserError(f"{args.model} is an inpainting model ({pipe.unet.config.in_channels} channels); give --method inpaint")
    if "inpaint" in methods and "img2img" in methods and bool((work.mask > 0).all()):
        methods.remove("inpaint")
        print("note: everything is to be repaired, so inpainting would be the same as img2img and is left out")
    return [How(m, s, w, k) for m in methods for k in args.steps for w in args.guidance for s in args.strength]


def study(args: Args, pipe, work: Work, device: str) -> None:
    """Repair with every setting, measure, and show."""
    import torch
    from tqdm import tqdm

    from common.viz import save_picture
    from finetune_diffusers.evaluation.metrics import curves, write_csv
    from finetune_diffusers.models import fits, sheet

    cells, results, scores = settings(args, pipe, work), {}, {}
    pipe.set_progress_bar_config(disable=True)
    for how in tqdm(cells, "settings", mininterval=1, dynamic_ncols=True):
        with fits(args.scheduler), enough_memory(device, "--n, or --size of your picture"):
            results[how] = repair(pipe, work, how, args.seed)
        scores[how] = measures(results[how], work)
    plain = levels(args, pipe, work)
    best = report(cells, scores, plain, work)
    print(write_csv(csv_rows(scores, plain), args.out / "study.csv"))
    if work.truth is not None:
        panels = {name: {f"{m}, w = {w:g}": [(s, scores[How(m, s, w, best.steps)][name]) for s in sorted(set(args.strength))]
                         for m, w in dict.fromkeys((c.method, c.guidance) for c in cells)}
                  for name in ("psnr", "ssim", "perceptual")}  # fmt: skip
        lines = {name: {label: float(values[name].mean()) for label, (_, values) in plain.items() if label != AUTOENCODER} for name in panels}
        print(curves(panels, lines, f"strength ({best.steps} steps)", args.out / "study.png"))
    columns = {label: pictures for label, (pictures, _) in plain.items() if label != AUTOENCODER}
    columns = ({"the truth": work.truth} if work.truth is not None else {}) | columns
    columns |= {f"strength {s:g}": results[best._replace(strength=s)] for s in dict.fromkeys(args.strength)}
    shown = min(len(work.prompts), 6)
    table = torch.stack([pictures[:shown] for pictures in columns.values()], 1)  # (shown, columns, 3, H, W)
    print(save_picture(sheet(table, [""] * shown, list(columns), height=96), args.out / "grid.png"))
    print(f"  (the grid: {best.method}, w = {best.guidance:g}, {best.steps} steps)")
    chain(args, pipe, work, best)


def measures(pictures: "Tensor", work: Work) -> dict[str, "Tensor"]:
    """Of each picture: how far it is from the damaged one, and, where the truth is known, how near to it."""
    from finetune_diffusers.evaluation.metrics import distance, likeness

    moved = {"moved": distance(pictures, work.damaged)}
    return moved if work.truth is None else likeness(pictures, work.truth) | moved


def levels(args: Args, pipe, work: Work) -> dict[str, tuple["Tensor", dict[str, "Tensor"]]]:
    """What to compare with: the damaged pictures, the old way, and the truth sent through the autoencoder.

    The last is what the latents can say of a picture at all; known pixels are put back there, too.
    """
    from finetune_diffusers.data.degradations import old_way, put_back

    found = {"damaged": work.damaged}
    if not args.damaged:
        found["the old way"] = old_way(work.damaged, work.mask, args.damage, args.block)
    if work.truth is not None:
        found[AUTOENCODER] = put_back(there_and_back(pipe, work.truth), work.damaged, work.mask)
    return {label: (pictures, measures(pictures, work)) for label, pictures in found.items()}


def there_and_back(pipe, images: "Tensor") -> "Tensor":
    """Encoded and decoded, nothing else. (N, 3, H, W) in [-1, 1]"""
    import torch

    with torch.no_grad():
        z = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
        return pipe.vae.decode(z).sample.float().cpu().clamp(-1, 1)


# --------------------------------------------------------------------------------------------------------------- telling it


def report(cells: list[How], scores: dict, plain: dict, work: Work) -> How:
    """Print the tables; returns the best setting by PSNR (without a truth: the one in the middle)."""
    from finetune_diffusers.evaluation.metrics import print_table, show

    if work.truth is None:
        for how in cells:
            print(f"{how.method}, strength {how.strength:g}, w = {how.guidance:g}, {how.steps} steps: moved {show(scores[how]['moved'], 3)}")
        return cells[len(cells) // 2]
    print_table([{"": label} | {name: show(v[name], d) for name, d in (("psnr", 2), ("ssim", 3), ("perceptual", 3))}
                 for label, (_, v) in plain.items()])  # fmt: skip
    for method, steps in dict.fromkeys((c.method, c.steps) for c in cells):
        mine = [c for c in cells if (c.method, c.steps) == (method, steps)]
        for name, words, digits in (("psnr", "PSNR in dB", 2), ("ssim", "SSIM", 3)):
            print(f"\n{method}, {steps} steps: {words}, mean ± standard error over {len(work.prompts)} pictures")
            print_table([{"guidance": f"w = {w:g}"} | {f"strength {c.strength:g}": show(scores[c][name], digits) for c in mine if c.guidance == w}
                         for w in dict.fromkeys(c.guidance for c in mine)])  # fmt: skip
    best = max(cells, key=lambda c: float(scores[c]["psnr"].mean()))
    print(f"\nthe best of {len(cells)} settings (chosen on these same pictures): {best.method}, strength {best.strength:g}, "
          f"w = {best.guidance:g}, {best.steps} steps")  # fmt: skip
    for label in ("damaged", "the old way"):
        if label in plain:
            print(f"  PSNR against {label}: {show(scores[best]['psnr'] - plain[label][1]['psnr'])} dB, picture by picture")
    return best


def csv_rows(scores: dict, plain: dict) -> list[dict[str, object]]:
    from finetune_diffusers.evaluation.metrics import mean_error

    def numbers(values: dict) -> dict[str, float]:
        return {key: number for name, each in values.items()
                for key, number in zip((name, f"{name}_error"), mean_error(each), strict=True)}  # fmt: skip

    return [{"method": label, "strength": "", "guidance": "", "steps": ""} | numbers(values) for label, (_, values) in plain.items()] + [
        how._asdict() | numbers(values) for how, values in scores.items()
    ]


def chain(args: Args, pipe, work: Work, best: How) -> None:
    """A second, gentle pass after the first, handed on as pictures or as latents.

    Latents save a decoding and an encoding, and what these lose: `output_type="latent"` gives them as the next pipeline's `image`
    takes them.
    """
    import time

    from finetune_diffusers.evaluation.metrics import distance, print_table, show
    from finetune_diffusers.models import as_task, use_scheduler

    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        return  # the second pass is img2img
    again = How("img2img", max(AGAIN, 1 / min(args.steps)), best.guidance, best.steps)
    second = as_task(pipe, "inpaint")
    use_scheduler(second, args.scheduler)
    rows, results = [], {}
    for label in ("one pass", "two, by pictures", "two, by latents"):
        began = time.perf_counter()
        if label == "one pass":
            results[label] = repair(pipe, work, best, args.seed)
        else:
            first = repair(pipe, work, best, args.seed, latents=label.endswith("latents"))
            results[label] = repair(second, work, again, args.seed + 1, start=first)
        row = {"": label, "seconds": f"{time.perf_counter() - began:.2f}", "from one pass": show(distance(results[label], results["one pass"]), 3)}
        rows.append(row if work.truth is None else row | {"psnr": show(measures(results[label], work)["psnr"])})
    print(f"\na second pass of strength {again.strength:g}, in the space of pictures or of latents")
    print_table(rows)


if __name__ == "__main__":
    run(main, Args)

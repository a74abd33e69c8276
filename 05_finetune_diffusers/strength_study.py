"""Claim 13, measured: lower strength keeps the image, higher follows the prompt; very high guidance gives artefacts.

  python 05_finetune_diffusers/strength_study.py
  python 05_finetune_diffusers/strength_study.py --n 64 --strength 0.1 0.3 0.5 0.7 0.9 --guidance 1 3 9 27

A creature never trained on is redrawn by img2img as the prompt of ANOTHER creature says. How far the picture moves is a distance of
pixels. What it becomes is asked of the course's judge of creatures, of those attributes only that the prompt names and the picture
had otherwise: each of them now is as the prompt says (followed), as the picture was (kept), or neither.

At strength 1 the same is drawn with ever more guidance, and the look of the pictures is measured beside that of the creatures
themselves: saturation, clipped channels, and fine detail.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from common.cli import pick_device, run
from common.errors import UserError, enough_memory
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.models import OUT, PRETRAINED, check_schedulers

if TYPE_CHECKING:
    from torch import Tensor

    from common.evaluate.creature_classifier import CreatureClassifier


LOOKS = ("followed", "saturation", "clipped", "detail")  # what guidance is compared by


@dataclass(frozen=True)
class Args:
    strength: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """How far back to noise, above 0 to 1."""
    at_guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale at which strengths are compared."""
    guidance: Annotated[tuple[float, ...], Range(1, 1000, hint="1 is off")] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Guidance scales that are compared at strength 1."""
    n: Annotated[int, Range(2, 1_000_000, hint="the prompt of each picture is another's")] = 16
    """Pictures of each."""
    steps: Annotated[int, SAMPLER_STEPS] = 20
    """From pure noise; a strength of 0.4 takes 0.4 of them."""
    scheduler: str = "dpm++"
    """ddim, dpm++, euler-a, ...: see generate.py."""
    split: Literal["test", "heldout"] = "test"
    """Creatures never trained on: of the kind that were, or combinations that never were."""
    model: str = str(PRETRAINED)
    """The folder of a pipeline that draws creatures."""
    seed: int = 0
    out: Path = OUT / "strength"
    """The folder that tables and pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


class Pairs(NamedTuple):
    """Pictures, and the prompts of others."""

    images: "Tensor"     # (N, 3, H, W) in [-1, 1]
    prompts: list[str]   # N
    had: "Tensor"        # (N, 11) attributes of the pictures
    wanted: "Tensor"     # (N, 11) attributes of the creatures that the prompts describe
    asked: "Tensor"      # (N, 11) bool: named in the prompt, and otherwise in the picture


def main(args: Args) -> None:
    check(args)
    device, began = pick_device(args.device), time.monotonic()

    import torch
    from tqdm import tqdm

    from common.evaluate.creature_classifier import load_creature_classifier
    from finetune_diffusers.evaluation.metrics import curves, tone, write_csv
    from finetune_diffusers.models import fits, native_size, open_pipeline, use_scheduler
    from finetune_diffusers.training.memory_usage import in_all

    pipe = open_pipeline(args.model, "image", device)
    use_scheduler(pipe, args.scheduler)
    pipe.set_progress_bar_config(disable=True)
    pairs, judge = make_pairs(args, native_size(pipe)), load_creature_classifier()
    cells = [(s, args.at_guidance) for s in args.strength] + [(1.0, w) for w in args.guidance]
    drawn, seen = {}, {}
    for cell in tqdm(list(dict.fromkeys(cells)), "settings", mininterval=1, dynamic_ncols=True):
        with fits(args.scheduler), enough_memory(device, "--n"):
            drawn[cell] = redraw(pipe, pairs, *cell, args)
        seen[cell] = look_at(judge, drawn[cell], pairs)
    real = tone(pairs.images)

    by_strength = {s: seen[s, args.at_guidance] for s in args.strength}
    by_guidance = {w: seen[1.0, w] for w in args.guidance}
    tell(by_strength, f"w = {args.at_guidance:g}", "strength", ("moved", "kept", "followed"), {}, args.n)
    tell(by_guidance, "strength 1", "guidance", LOOKS, real, args.n)
    rows = [{"strength": s, "guidance": w} | numbers(values) for (s, w), values in seen.items()]
    print(write_csv([*rows, {"strength": "real creatures", "guidance": ""} | numbers(real)], args.out / "strength.csv"))
    panels = {name: {name: [(s, values[name]) for s, values in sorted(by_strength.items())]} for name in ("moved", "kept", "followed")}
    print(curves(panels, {}, "strength", args.out / "strength.png"))
    panels = {name: {name: [(w, values[name]) for w, values in sorted(by_guidance.items())]} for name in LOOKS}
    lines = {name: {"real creatures": float(real[name].mean())} for name in LOOKS[1:]}
    print(curves(panels, lines, "guidance scale", args.out / "guidance.png", log=True))
    show_some(args, pairs, drawn, torch)
    print(in_all(time.monotonic() - began, torch.device(device)))


def check(args: Args) -> None:
    check_schedulers([args.scheduler])
    if int(args.steps * min(args.strength)) < 1:
        raise UserError(f"--strength {min(args.strength):g} of {args.steps} steps is less than one step; give more --steps or more --strength")


def make_pairs(args: Args, size: int) -> Pairs:
    """Creature i, and the caption of the creature after it."""
    import torch

    from common.data import load
    from common.data.creatures.dataset import mentioned
    from common.evaluate.creature_classifier import mentioned_table
    from common.io.pixels import to_float

    images = load("creatures", size, split=args.split, language="en", n=args.n)
    order = torch.arange(args.n).roll(-1)
    had, named = images.attributes.table, mentioned_table([mentioned(0, args.split, i) for i in range(args.n)])
    wanted = had[order]
    return Pairs(to_float(images.pixels), [images.captions[i] for i in order], had, wanted, named[order] & (wanted != had))


def redraw(pipe, pairs: Pairs, strength: float, guidance: float, args: Args) -> "Tensor":
    """img2img of every picture with the other's prompt. (N, 3, H, W) in [-1, 1] on the CPU"""
    from finetune_diffusers.models import generators, to_images

    images = pipe(
        prompt=pairs.prompts, image=(pairs.images + 1) / 2, strength=strength, guidance_scale=guidance, num_inference_steps=args.steps,
        generator=generators(args.seed, args.n), output_type="pt",
    ).images  # fmt: skip
    return to_images(images, args.scheduler)


def look_at(judge: "CreatureClassifier", images: "Tensor", pairs: Pairs) -> "dict[str, Tensor]":
    """What is measured of pictures: for each measure (N,)."""
    from common.evaluate.creature_classifier import read_attributes
    from finetune_diffusers.evaluation.metrics import distance, tone

    read, _ = read_attributes(judge, images)  # (N, 11)
    asked = pairs.asked.sum(1).float()  # a picture of which nothing is asked gives NaN, and is left out of the means
    return {
        "moved": distance(images, pairs.images),
        "kept": ((read == pairs.had) & pairs.asked).sum(1) / asked,
        "followed": ((read == pairs.wanted) & pairs.asked).sum(1) / asked,
        **tone(images),
    }


def numbers(values: "dict[str, Tensor]") -> dict[str, float]:
    from finetune_diffusers.evaluation.metrics import mean_error

    return {key: number for name, each in values.items() for key, number in zip((name, f"{name}_error"), mean_error(each), strict=True)}


def tell(rows: dict, where: str, axis: str, names: tuple[str, ...], real: dict, n: int) -> None:
    """One line for each value of the axis: mean ± standard error."""
    from finetune_diffusers.evaluation.metrics import print_table, show

    print(f"\n{where}: mean ± standard error over {n} pictures")
    table = [{axis: f"{at:g}"} | {name: show(values[name], 3) for name in names} for at, values in rows.items()]
    if real:
        table.append({axis: "real"} | {name: show(real[name], 3) if name in real else "" for name in names})
    print_table(table)


def show_some(args: Args, pairs: Pairs, drawn: dict, torch) -> None:
    """Two sheets: a few pictures at every strength, and at every guidance scale."""
    from common.viz import save_picture
    from finetune_diffusers.models import sheet

    few = min(args.n, 5)
    for name, cells in (("strengths", {f"{s:g}": (s, args.at_guidance) for s in args.strength}), ("scales", {f"w = {w:g}": (1.0, w) for w in args.guidance})):
        columns = {"the picture": pairs.images[:few]} | {label: drawn[cell][:few] for label, cell in cells.items()}
        table = torch.stack(list(columns.values()), 1)
        print(save_picture(sheet(table, [""] * few, list(columns), height=96), args.out / f"{name}.png"))
    for i, prompt in enumerate(pairs.prompts[:few], 1):
        print(f"  row {i}: {prompt}")


if __name__ == "__main__":
    run(main, Args)

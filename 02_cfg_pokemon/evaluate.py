"""Does the picture become what its caption says? A text-to-image model of creatures, measured against the guidance scale.

  python 02_cfg_pokemon/evaluate.py                                               the shipped model
  python 02_cfg_pokemon/evaluate.py --model runs/02_cfg_pokemon/creatures --scales 0 1 1.5 2 3 5 8 --n 200
  python 02_cfg_pokemon/evaluate.py --rescale 0.7                                 what cures dark and burnt pictures?
  python 02_cfg_pokemon/evaluate.py --clip dynamic
  python 02_cfg_pokemon/evaluate.py --interval 0.3 5 --per-attribute

A judge that knows all creatures (common/evaluate/creature_classifier.py) names what is in each picture; only what the caption speaks of counts. The
captions are those of creatures that the model has not seen: `test`, and `heldout`, combinations of colour and element of which
it has not seen a single one. Each of them names both, so that a held-out prompt really asks for something new, and a test prompt
for as much. Beside every number stands its ceiling (real pictures of the same captions, by the same judge) and its floor (those
pictures with each other's captions). The same prompt begins with the same noise whatever the scale.

    accuracy     share of what is asked for that is there, with a bootstrap 95 % interval over prompts
    all right    share of pictures in which nothing is missing or wrong
    pair         share of pictures in which both colour and element are right: the combination
    brightness, saturation   means over all pixels, 0 to 1, with their standard error. Their differences between scales are much
                 surer than that, for the prompts are the same; so is the comparison with real pictures, which have the same prompts
    diversity    standard deviation between four pictures of the same prompt, 0 to 1; real: between creatures of that description

Drawn pictures are kept: stopped and started again, it goes on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from common.cli import pick_device, run, writable_folder
from common.errors import UserError

if TYPE_CHECKING:  # torch waits until it is needed
    from torch import Tensor

    from cfg_pokemon.pipeline import Painter, Wish
    from common.evaluate.creature_classifier import CreatureClassifier

PRETRAINED = Path(__file__).parent / "pretrained"
SEED = 0                       # of the creatures that captions are taken from: the course's own
ASKED = ("colour", "element")  # what every prompt speaks of
ALIKE, EACH = 24, 4            # so many prompts are drawn so many times, for the diversity
SHOWN = 5                      # prompts of each split in the grid
CLIP = {"static": True, "none": False, "dynamic": "dynamic"}
WIDE = 46                      # letters that a split takes in the table
Row = dict[str, object]


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """A run folder of this chapter, or a folder that save_painter wrote."""
    scales: tuple[float, ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt."""
    n: int = 200
    """Prompts of each split."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Where they come from; brightness, saturation and diversity are shown for the first."""
    language: Literal["en", "zh", "both"] = "both"
    """Of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """A cure for too strong pictures: phi of guidance rescale, 0 to 1."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How guesses of the picture are kept in range: cut off at white and black, not at all, or shrunk into it (dynamic)."""
    interval: tuple[float, float] = (0.0, math.inf)
    """Guide only at noise levels sigma / alpha between these two."""
    negative: str = ""
    """A negative prompt for all pictures."""
    per_attribute: bool = False
    """Also print the accuracy of each attribute. (The CSV holds it anyway.)"""
    seed: int = 0
    """Of the noise that the pictures begin with."""
    out: Path | None = None
    """Folder for results.csv and the pictures; by default runs/02_cfg_pokemon/evaluate/<model>/<what is not as usual>."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# ----------------------------------------------------------------------------------------------------------- the prompts


class Prompts(NamedTuple):
    """What is asked for, and real pictures of it."""

    split: str
    captions: list[str]      # N
    labels: list[str]        # N, the same in English, for pictures whose font knows no Chinese
    wanted: Tensor           # (N, 11) the table of the creatures that are described
    mentioned: Tensor        # (N, 11) bool, what the captions speak of
    real: Tensor             # (N, 3, S, S) uint8, those creatures
    alike: Tensor            # (EACH, A, 3, S, S) uint8, for the first A prompts: other creatures that fit them as well


def ask(split: str, n: int, language: str, size: int) -> Prompts:
    """The first n creatures of a split of whose colour and element their captions speak."""
    import itertools

    import torch

    from common.data.creatures.attributes import to_row
    from common.data.creatures.dataset import caption, creature, draw, mentioned
    from common.evaluate.creature_classifier import mentioned_table

    fitting = (i for i in itertools.count() if set(ASKED) <= set(mentioned(SEED, split, i)))
    chosen = list(itertools.islice(fitting, n))
    said = [mentioned(SEED, split, i) for i in chosen]
    found = [creature(SEED, split, i) for i in chosen]  # attributes and poses

    def another(k: int, i: int) -> Tensor:
        """A creature that differs from the i-th in everything its caption leaves open."""
        attributes, pose = creature(SEED + 1, split, EACH * i + k)
        return torch.from_numpy(draw(attributes | {name: found[i][0][name] for name in said[i]}, size, pose))

    return Prompts(
        split,
        [caption(SEED, split, i, language) for i in chosen],
        [caption(SEED, split, i, "en") for i in chosen],
        torch.tensor([to_row(attributes) for attributes, _ in found]),
        mentioned_table(said),
        torch.stack([torch.from_numpy(draw(attributes, size, pose)) for attributes, pose in found]),
        torch.stack([torch.stack([another(k, i) for i in range(min(n, ALIKE))]) for k in range(EACH)]),
    )


# ---------------------------------------------------------------------------------------------------------- the pictures


def pictures(painter: Painter, model: str, prompts: Prompts, wish: Wish, folder: Path) -> tuple[Tensor, Tensor]:
    """One picture of each prompt (N, 3, S, S), and EACH of the first A (EACH, A, 3, S, S), uint8. Kept in the folder, under a
    name that changes with everything they depend on. model: fingerprint of the painter's files."""
    import hashlib
    import json

    from safetensors.torch import load_file, save

    from common.io.files import write_atomically

    A = min(len(prompts.captions), ALIKE)
    captions = prompts.captions + prompts.captions[:A] * (EACH - 1)
    key = hashlib.sha256(json.dumps([model, captions, asdict(wish)]).encode()).hexdigest()[:16]
    path = folder / f"{prompts.split}-w={wish.w:g}-{key}.safetensors"
    if not path.exists():
        drawn = draw(painter, captions, wish, f"w = {wish.w:g}, {prompts.split}")
        write_atomically(path, lambda file: file.write(save({"pixels": drawn})))
    pixels = load_file(path)["pixels"]
    N = len(prompts.captions)
    return pixels[:N], pixels[[*range(A), *range(N, len(pixels))]].unflatten(0, (EACH, A))


def draw(painter: Painter, captions: list[str], wish: Wish, title: str) -> Tensor:
    """As painter.draw, with a progress bar and in bytes: (N, 3, S, S) uint8. What is not finite becomes grey."""
    import torch
    from tqdm import tqdm

    from cfg_pokemon.pipeline import BATCH
    from common.io.pixels import to_bytes

    drawn = []
    with tqdm(total=len(captions), desc=title, unit="picture", leave=False, dynamic_ncols=True) as bar:
        for i in range(0, len(captions), BATCH):
            for step in painter.steps(captions[i : i + BATCH], wish, i):
                x = step.x
            drawn.append(to_bytes(x.nan_to_num(0.0).cpu()))
            bar.update(len(x))
    return torch.cat(drawn)


def fingerprint(folder: Path) -> str:
    """A hash of the model's files."""
    import hashlib

    root, digest = folder if (folder / "unet").is_dir() else folder / "model", hashlib.sha256()
    for path in sorted(p for part in ("unet", "scheduler", "text_encoder", "tokenizer") for p in (root / part).rglob("*") if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- the numbers


def measure(judge: CreatureClassifier, prompts: Prompts, pixels: Tensor, alike: Tensor) -> dict[str, float]:
    """Every measure of the pictures (N, 3, S, S) uint8 of these prompts, and of some (EACH, A, 3, S, S) that share one."""
    from common.data.creatures.attributes import NAMES
    from common.evaluate.creature_classifier import accuracies, all_right, read_attributes

    read, _ = read_attributes(judge, pixels)
    right = (read == prompts.wanted) & prompts.mentioned
    accuracy = share(right, prompts.mentioned)
    grey = pixels.float() / 255
    brightness, saturation = grey.mean((1, 2, 3)), (grey.amax(1) - grey.amin(1)).mean((1, 2))  # each (N,)
    return {
        "accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": min(accuracy.high, 1.0),
        "all_right": float(all_right(read, prompts.wanted, prompts.mentioned).cpu().double().mean()),
        "pair": float(right[:, [NAMES.index(name) for name in ASKED]].all(1).cpu().double().mean()),
        "brightness": float(brightness.mean()), "brightness_sd": float(brightness.std(correction=0)) / len(grey) ** 0.5,
        "saturation": float(saturation.mean()), "saturation_sd": float(saturation.std(correction=0)) / len(grey) ** 0.5,
        "burnt": float(((pixels == 0) | (pixels == 255)).cpu().double().mean()),  # share of values at the end of the range
        "diversity": float((alike.float() / 255).var(0).mean().sqrt()),
    } | dict(zip(NAMES, accuracies(read, prompts.wanted, prompts.mentioned).tolist(), strict=True))  # fmt: skip


def share(right: Tensor, mentioned: Tensor):
    """The pooled accuracy with its interval, as common.evaluate.distances.Estimate: prompts are drawn again, with all they speak of."""
    import torch

    from common.evaluate.distances import bootstrap, one_thread

    counts = torch.stack([right.sum(1), mentioned.sum(1)], 1).cpu().double()  # (N, 2)
    with one_thread():
        return bootstrap(lambda some: float(some[:, 0].sum() / some[:, 1].sum()), counts, times=1000)


def bounds(judge: CreatureClassifier, prompts: Prompts) -> dict[str, float]:
    """What stands beside every measure: what real pictures get (_real), and what they get with each other's captions (_chance)."""
    from common.data.creatures.attributes import NAMES
    from common.evaluate.creature_classifier import chance, read_attributes

    real = {f"{key}_real": value for key, value in measure(judge, prompts, prompts.real, prompts.alike).items()}
    if len(prompts.captions) < 2:
        return real
    floor = chance(read_attributes(judge, prompts.real)[0], prompts.wanted, prompts.mentioned)  # (11,)
    counts = prompts.mentioned.cpu().double().sum(0)
    pooled = float((floor.nan_to_num(0.0) * counts).sum() / counts.sum())
    return real | {"accuracy_chance": pooled} | {f"{name}_chance": value for name, value in zip(NAMES, floor.tolist(), strict=True)}


# ------------------------------------------------------------------------------------------------------------- the words


def block(row: Row, suffix: str = "") -> str:
    """The columns of one split, as header() names them; suffix "" for the model, "_real" or "_chance"."""
    if f"accuracy{suffix}" not in row:
        return " " * WIDE
    if suffix == "_chance":
        return f"{row['accuracy_chance']:>10.1%}".ljust(WIDE)
    low, high = (100 * row[f"accuracy_{end}{suffix}"] for end in ("low", "high"))
    return f"{row[f'accuracy{suffix}']:>10.1%}{f'({low:.1f} to {high:.1f})':>17}{row[f'all_right{suffix}']:>11.1%}{row[f'pair{suffix}']:>8.1%}"


def colours(row: Row, suffix: str = "") -> str:
    """Brightness, saturation and diversity, in columns."""
    parts = [f"{row[f'{key}{suffix}']:.3f} ± {row[f'{key}_sd{suffix}']:.3f}" for key in ("brightness", "saturation")]
    return "".join(f"{part:>16}" for part in parts) + f"{row[f'diversity{suffix}']:>11.3f}"


def header(splits: tuple[str, ...]) -> str:
    names = {"test": "test", "heldout": "held-out combinations"}
    columns = f"{'accuracy':>10}{'(95 %)':>17}{'all right':>11}{'pair':>8}"
    return (f"{'':7}" + "".join(f"{names[split]:^{WIDE}}" for split in splits) + f"{names[splits[0]]:^43}\n"
            f"{'w':>7}" + columns * len(splits) + f"{'brightness':>16}{'saturation':>16}{'diversity':>11}")  # fmt: skip


def line(name: str, rows: list[Row], suffix: str = "") -> str:
    """One line of the table: the same scale, a row for each split."""
    words = f"{name:>7}" + "".join(block(row, suffix) for row in rows)
    return words.rstrip() if suffix == "_chance" else words + colours(rows[0], suffix)


def attribute_table(rows: list[Row], split: str) -> str:
    """Accuracy of each attribute, a column for each scale."""
    from common.data.creatures.attributes import NAMES

    mine = [row for row in rows if row["split"] == split]
    lines = [f"\n{split:12}" + "".join(f"{'w = ' + format(row['w'], 'g'):>9}" for row in mine) + f"{'real':>9}{'chance':>9}"]
    for name in NAMES:
        values = [*(row[name] for row in mine), mine[0][f"{name}_real"], mine[0].get(f"{name}_chance", math.nan)]
        lines.append(f"{name:12}" + "".join(f"{value:>9.1%}" for value in values))
    return "\n".join(lines)


def save_rows(rows: list[Row], path: Path) -> None:
    """results.csv: a row for each scale and split, every setting and every measure."""
    import csv
    import io

    from common.io.files import write_atomically

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


# ---------------------------------------------------------------------------------------------------------- the pictures


def plot(rows: list[Row], title: str, path: Path) -> Path:
    """Accuracy, brightness, saturation and diversity over w, each with its interval and the level of real pictures."""
    from matplotlib.figure import Figure

    from common.io.files import write_atomically

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = dict(zip(("accuracy", "brightness", "saturation", "diversity"), figure.subplots(1, 4), strict=True))
    for k, split in enumerate(dict.fromkeys(row["split"] for row in rows)):
        mine = sorted((row for row in rows if row["split"] == split), key=lambda row: row["w"])
        w = [row["w"] for row in mine]
        for key, axis in axes.items():
            axis.plot(w, [row[key] for row in mine], marker="o", markersize=3, color=f"C{k}", label={"heldout": "held out"}.get(split, split))
            if key == "accuracy":
                axis.fill_between(w, [row["accuracy_low"] for row in mine], [row["accuracy_high"] for row in mine], color=f"C{k}", alpha=0.2, linewidth=0)
            elif key != "diversity":
                low, high = ([row[key] + sign * 1.96 * row[f"{key}_sd"] for row in mine] for sign in (-1, 1))
                axis.fill_between(w, low, high, color=f"C{k}", alpha=0.2, linewidth=0)
            axis.axhline(mine[0][f"{key}_real"], color=f"C{k}", linestyle="--", linewidth=1, label="real pictures" if k == 0 else None)
        if "accuracy_chance" in mine[0]:
            axes["accuracy"].axhline(mine[0]["accuracy_chance"], color=f"C{k}", linestyle=":", linewidth=1, label="chance" if k == 0 else None)
    for key, axis in axes.items():
        axis.set(title=key, xlabel="guidance scale w")
        axis.spines[["top", "right"]].set_visible(False)
    axes["accuracy"].set(ylim=(0, 1.02))
    axes["diversity"].set(ylim=(0, None))
    axes["accuracy"].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def grid(judge: CreatureClassifier, prompts: list[Prompts], shown: dict[float, list[Tensor]], path: Path) -> Path:
    """A row for each of the first prompts, a column for each scale, the real picture at the left; what the judge misses stands in
    red below. shown: scale -> for each split, its first pictures (n, 3, S, S) uint8."""
    import textwrap

    from matplotlib.figure import Figure

    from common.data.creatures.attributes import NAMES
    from common.evaluate.creature_classifier import read_attributes
    from common.io.files import write_atomically

    columns = {"real": [p.real[:SHOWN] for p in prompts]} | {f"w = {w:g}": parts for w, parts in shown.items()}
    rows = [(k, i) for k, p in enumerate(prompts) for i in range(min(SHOWN, len(p.captions)))]
    wide, high, left = len(columns), 1.22 * len(rows), 2.6  # one picture is 1 x 1, with room for words below it and at the left
    figure = Figure(figsize=(1.1 * (left + wide), 1.1 * (0.25 + high)))
    axis = figure.add_axes((0, 0, 1, 1))  # one for all: eighty would take a minute
    axis.axis("off")
    for j, (title, parts) in enumerate(columns.items()):
        axis.text(j + 0.5, -0.06, title, fontsize=9, ha="center")
        read = [read_attributes(judge, pixels)[0] for pixels in parts]
        for y, (k, i) in enumerate(rows):
            p, top = prompts[k], 1.22 * y
            axis.imshow(parts[k][i].permute(1, 2, 0), interpolation="nearest", extent=(j + 0.02, j + 0.98, top + 0.98, top + 0.02), aspect="auto")
            missed = (read[k][i] != p.wanted[i]) & p.mentioned[i]  # (11,)
            wrong = [name for name, is_wrong in zip(NAMES, missed.tolist(), strict=True) if is_wrong]
            words = ", ".join(wrong if len(wrong) < 5 else [*wrong[:3], f"{len(wrong) - 3} more"])
            axis.text(j + 0.5, top + 1.0, textwrap.fill(words, 22), fontsize=5.5, color="crimson", ha="center", va="top")
    for y, (k, i) in enumerate(rows):
        p = prompts[k]
        notes = ["in Chinese"] * (not p.captions[i].isascii()) + ["held out"] * (p.split == "heldout")
        text = textwrap.fill(p.labels[i], 40) + (f"\n({', '.join(notes)})" if notes else "")
        axis.text(-0.1, 1.22 * y + 0.5, text, fontsize=7, ha="right", va="center")
    axis.set(xlim=(-left, wide), ylim=(high, -0.25))  # imshow changed them
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path


# ----------------------------------------------------------------------------------------------------------- the program


def unusual(args: Args) -> str:
    """A name for what differs from the usual way to draw: "plain", or "rescale=0.7,clip=dynamic"."""
    words = {key: getattr(args, key) for key in ("language", "sampler", "rescale", "clip", "interval", "negative", "seed")
             if getattr(args, key) != getattr(Args, key)}  # fmt: skip
    name = ",".join(f"{key}={'-'.join(f'{v:g}' for v in value) if key == 'interval' else value}" for key, value in words.items())
    return "".join(c if c.isalnum() or c in "=,.-" else "_" for c in name)[:100] or "plain"


def open_checked(args: Args, wish: Wish) -> Painter:
    """The model, and a refusal of what cannot be measured, before anything is drawn."""
    from cfg_pokemon.guidance import Guided
    from cfg_pokemon.pipeline import open_painter
    from common.data.drawn import SIZES
    from common.diffusion.sampler_spec import Sampler

    if not args.scales or not args.splits:
        raise UserError("give at least one of --scales and one of --splits, for instance --scales 1 3 --splits test")
    painter = open_painter(args.model, pick_device(args.device))
    if painter.net.cfg.in_channels != 3 or painter.net.cfg.size not in SIZES:
        raise UserError(f"{args.model} draws {painter.net.cfg.in_channels} channels at {painter.net.cfg.size} pixels; "
                        f"creatures are RGB and {SIZES[0]} to {SIZES[-1]} pixels a side")  # fmt: skip
    for w in args.scales:
        Guided(painter.net, painter.prediction, {}, {}, w, wish.clip, wish.rescale, wish.interval)
    painter.schedule.noise_levels(Sampler.parse(args.sampler).steps)
    return painter


def main(args: Args) -> None:

    from cfg_pokemon.pipeline import Wish
    from common.evaluate.creature_classifier import load_creature_classifier

    wish = Wish(1.0, args.negative, args.sampler, args.rescale, args.interval, CLIP[args.clip], args.seed)
    painter, judge = open_checked(args, wish), load_creature_classifier()
    out = writable_folder(args.out or Path("runs/02_cfg_pokemon/evaluate") / args.model.resolve().name / unusual(args))
    model, splits = fingerprint(args.model), tuple(dict.fromkeys(args.splits))
    prompts = [ask(split, args.n, args.language, painter.net.cfg.size) for split in splits]
    known = [bounds(judge, p) for p in prompts]
    settings = {"n": args.n, "model": args.model, "language": args.language, "sampler": args.sampler, "rescale": args.rescale, "clip": args.clip,
                "interval_low": args.interval[0], "interval_high": args.interval[1], "negative": args.negative, "seed": args.seed}  # fmt: skip
    print(f"{args.model}: {args.n} prompts, {args.sampler}, {unusual(args)}\n\n{header(splits)}")
    print(f"{line('real', known, '_real')}\n{line('chance', known, '_chance')}")
    rows, shown = [], {}
    for w in dict.fromkeys(args.scales):
        drawn = [pictures(painter, model, p, replace(wish, w=w), out / "pictures") for p in prompts]
        new = [{"w": w, "split": p.split} | settings | measure(judge, p, *d) | k for p, d, k in zip(prompts, drawn, known, strict=True)]
        print(line(f"{w:g}", new), flush=True)
        rows, shown[w] = rows + new, [pixels[:SHOWN] for pixels, _ in drawn]
        save_rows(rows, out / "results.csv")  # after every scale: whoever stops here has all that was measured
    if args.per_attribute:
        print(*(attribute_table(rows, split) for split in splits), sep="\n")
    print(f"\nplot    {plot(rows, f'{args.n} prompts of each split; bands: 95 %; dashed: real pictures', out / 'plot.png')}")
    print(f"images  {grid(judge, prompts, shown, out / 'grid.png')}")
    print(f"table   {out / 'results.csv'}")


if __name__ == "__main__":
    run(main, Args)

"""Does the picture become what its caption says, and what does the autoencoder lose on the way? Measured.

  python 04_latent_sd/evaluate.py                                                the shipped model
  python 04_latent_sd/evaluate.py --model runs/04_latent_sd/creatures-dishes --scales 1 2 3 5 8 --n 200
  python 04_latent_sd/evaluate.py --scales                                       the autoencoder alone

Autoencoder: of images of each set that training never saw, the PSNR of their reconstructions, and the standard deviation of their
scaled latents, which the noise schedule counts on being 1.

Text: as in chapter 2, with the same judge (common/evaluate/creature_classifier.py, which looks at 32 x 32 pixels) and the same prompts: captions of
creatures that speak of colour and element, from `test`, and from `heldout`, combinations never seen in training. The same prompt
begins with the same noise whatever the scale. Beside the model stand its ceiling (real creatures of these captions), the ceiling that
the autoencoder leaves of it (the same creatures, encoded and decoded), and the floor (real creatures with each other's captions).

    accuracy     share of what is asked for that is there, with a bootstrap 95 % interval over prompts
    all right    share of pictures in which nothing is missing or wrong
    pair         share of pictures in which both colour and element are right
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from common.cli import pick_device, run, writable_folder
from common.errors import UserError
from common.io.ranges import MAY_BE_EMPTY

if TYPE_CHECKING:  # torch waits until it is needed
    from torch import Tensor

    from common.data import Images
    from common.evaluate.creature_classifier import CreatureClassifier
    from latent_sd.pipeline import Pipeline, Wish

PRETRAINED = Path(__file__).parent / "pretrained"
SEED = 0                       # of the creatures that captions are taken from: the course's own
ASKED = ("colour", "element")  # what every prompt speaks of
WIDE = 46                      # letters that a split takes in the table
SHOWN = 12                     # prompts of each split in the grid
Row = dict[str, object]


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """A run folder of this chapter, or the folder of such a model."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = (1, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt. None of them: the autoencoder alone."""
    n: int = 200
    """Prompts of each split, and images of each set."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Where prompts come from."""
    data: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ("creatures", "dishes")
    """Sets whose test images the autoencoder is measured on. None of them: the words alone."""
    data_dir: Path = Path("data")
    language: Literal["en", "zh", "both"] = "both"
    """Of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """phi of guidance rescale, 0 to 1."""
    negative: str = ""
    """A negative prompt for all pictures."""
    seed: int = 0
    """Of the noise that the pictures begin with."""
    out: Path | None = None
    """Folder for results.csv and the pictures; by default runs/04_latent_sd/evaluate/<model>."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# ------------------------------------------------------------------------------------------------------- the autoencoder


def load_sets(pipeline: Pipeline, args: Args) -> dict[str, Images]:
    """Test images of each set; one that the autoencoder cannot take is refused."""
    from common.training.latents import check_fit
    from latent_sd.concat_dataset import some_of

    sets = {name: some_of((name,), pipeline.size, args.data_dir, "test", args.n, pipeline.vae.cfg.image_channels) for name in args.data}
    for images in sets.values():
        check_fit(pipeline.vae, images, "--model")
    return sets


def measure_vae(pipeline: Pipeline, name: str, images: Images) -> Row:
    """PSNR and the spread of scaled latents on these images."""
    from latent_sd.vae_trainer import judge

    found = judge(pipeline.vae, images)
    return {"set": name, "images": len(images), "psnr": found["psnr"], "scaled_std": pipeline.vae.cfg.scaling_factor * found["latent_std"]}


def measure_sets(pipeline: Pipeline, sets: dict[str, Images], args: Args, out: Path) -> None:
    """The table of what the autoencoder loses, and vae.csv."""
    print(f"{args.model}: the autoencoder on test images\n\n{'':16}{'images':>10}{'PSNR':>13}{'scaled latents, sd':>22}")
    found = [measure_vae(pipeline, name, images) for name, images in sets.items()]
    for row in found:
        print(f"{row['set']:>16}{row['images']:>10}{row['psnr']:>10.2f} dB{row['scaled_std']:>22.3f}")
    save_rows(found, out / "vae.csv")


# ----------------------------------------------------------------------------------------------------------- the prompts


class Prompts(NamedTuple):
    """What is asked for, and real pictures of it."""

    split: str
    captions: list[str]  # N
    wanted: Tensor       # (N, 11) the table of the creatures that are described
    mentioned: Tensor    # (N, 11) bool, what the captions speak of
    real: Tensor         # (N, 3, S, S) uint8, those creatures


def ask(split: str, n: int, language: str, size: int) -> Prompts:
    """The first n creatures of a split of whose colour and element their captions speak."""
    import itertools

    import torch

    from common.data.creatures.attributes import to_row
    from common.data.creatures.dataset import caption, creature, draw, mentioned
    from common.evaluate.creature_classifier import mentioned_table

    fitting = (i for i in itertools.count() if set(ASKED) <= set(mentioned(SEED, split, i)))
    chosen = list(itertools.islice(fitting, n))
    found = [creature(SEED, split, i) for i in chosen]  # attributes and poses
    return Prompts(
        split,
        [caption(SEED, split, i, language) for i in chosen],
        torch.tensor([to_row(attributes) for attributes, _ in found]),
        mentioned_table([mentioned(SEED, split, i) for i in chosen]),
        torch.stack([torch.from_numpy(draw(attributes, size, pose)) for attributes, pose in found]),
    )


def draw_all(pipeline: Pipeline, prompts: Prompts, wish: Wish) -> Tensor:
    """One picture of each prompt, with a progress bar: (N, 3, S, S) uint8. What is not finite becomes grey."""
    import torch
    from tqdm import tqdm

    from common.io.pixels import to_bytes
    from latent_sd.pipeline import batches

    drawn = []
    with tqdm(total=len(prompts.captions), desc=f"w = {wish.w:g}, {prompts.split}", unit="picture", leave=False, dynamic_ncols=True) as bar:
        for part in batches(len(prompts.captions)):
            *_, last = pipeline.txt2img_steps(prompts.captions[part], wish, part.start)
            drawn.append(to_bytes(pipeline.decode(last.x).nan_to_num(0.0)))
            bar.update(len(drawn[-1]))
    return torch.cat(drawn)


def through_vae(pipeline: Pipeline, pixels: Tensor) -> Tensor:
    """Encoded and decoded. (N, 3, S, S) uint8 in and out."""
    import torch

    from common.io.pixels import to_bytes, to_float
    from latent_sd.pipeline import batches

    return torch.cat([to_bytes(pipeline.decode(pipeline.encode(to_float(pixels[part])))) for part in batches(len(pixels))])


# ----------------------------------------------------------------------------------------------------------- the numbers


def measure(judge: CreatureClassifier, prompts: Prompts, pixels: Tensor) -> Row:
    """Every measure of the pictures (N, 3, S, S) uint8 of these prompts."""
    from common.data.creatures.attributes import NAMES
    from common.evaluate.creature_classifier import accuracies, all_right, read_attributes

    read, _ = read_attributes(judge, pixels)
    right = (read == prompts.wanted) & prompts.mentioned
    accuracy = share(right, prompts.mentioned)
    return {
        "accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": min(accuracy.high, 1.0),
        "all_right": float(all_right(read, prompts.wanted, prompts.mentioned).cpu().double().mean()),
        "pair": float(right[:, [NAMES.index(name) for name in ASKED]].all(1).cpu().double().mean()),
    } | dict(zip(NAMES, accuracies(read, prompts.wanted, prompts.mentioned).tolist(), strict=True))  # fmt: skip


def share(right: Tensor, mentioned: Tensor):
    """The pooled accuracy with its interval, as common.evaluate.distances.Estimate: prompts are drawn again, with all they speak of."""
    import torch

    from common.evaluate.distances import bootstrap, one_thread

    counts = torch.stack([right.sum(1), mentioned.sum(1)], 1).cpu().double()  # (N, 2)
    with one_thread():
        return bootstrap(lambda some: float(some[:, 0].sum() / some[:, 1].sum()), counts, times=1000)


def floor(judge: CreatureClassifier, prompts: Prompts) -> Row:
    """What real creatures get with each other's captions: a model that draws as well as the data, and cannot read."""
    from common.evaluate.creature_classifier import chance, read_attributes

    each = chance(read_attributes(judge, prompts.real)[0], prompts.wanted, prompts.mentioned)  # (11,)
    counts = prompts.mentioned.cpu().double().sum(0)
    return {"accuracy": float((each.nan_to_num(0.0) * counts).sum() / counts.sum())}


# ------------------------------------------------------------------------------------------------------------- the words


def header(splits: list[str]) -> str:
    names = {"test": "test", "heldout": "held-out combinations"}
    columns = f"{'accuracy':>10}{'(95 %)':>17}{'all right':>11}{'pair':>8}"
    return f"{'':16}" + "".join(f"{names[split]:^{WIDE}}" for split in splits) + f"\n{'w':>16}" + columns * len(splits)


def line(name: str, rows: list[Row]) -> str:
    """One line of the table, a row for each split."""
    return (f"{name:>16}" + "".join(block(row) for row in rows)).rstrip()


def block(row: Row) -> str:
    if "all_right" not in row:
        return f"{row['accuracy']:>10.1%}".ljust(WIDE)
    interval = f"({100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f})"
    return f"{row['accuracy']:>10.1%}{interval:>17}{row['all_right']:>11.1%}{row['pair']:>8.1%}"


def save_rows(rows: list[Row], path: Path) -> None:
    """A CSV with a row for each, every measure a column."""
    import csv
    import io

    from common.io.files import write_atomically

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


# ----------------------------------------------------------------------------------------------------------- the program


def open_checked(args: Args, wishes: list[Wish]) -> Pipeline:
    """The model, and a refusal of what cannot be measured, before anything is drawn."""
    from common.data.drawn import SIZES
    from common.diffusion.guidance import Guided
    from common.diffusion.sampler_spec import Sampler
    from latent_sd.pipeline import open_pipeline

    if not wishes and not args.data:
        raise UserError("there is nothing to measure; give --data to measure the autoencoder, --scales to measure prompt adherence, or both")
    if wishes and not args.splits:
        raise UserError("give at least one of --splits, for instance --splits test")
    pipeline = open_pipeline(args.model, pick_device(args.device))
    if pipeline.vae.cfg.image_channels != 3 or pipeline.size not in SIZES:
        raise UserError(f"{args.model} draws images of {pipeline.vae.cfg.image_channels} channels and {pipeline.size} pixels a side; this evaluation needs "
                        f"three channels and one of {', '.join(map(str, SIZES))} pixels, because it compares them with drawn creatures")  # fmt: skip
    for wish in wishes:
        Guided(pipeline.unet, pipeline.prediction, {}, {}, wish.w, False, wish.rescale, wish.interval)
    pipeline.schedule.noise_levels(Sampler.parse(args.sampler).steps)
    return pipeline


def main(args: Args) -> None:

    from latent_sd.pipeline import Wish

    wishes = [Wish(w, args.negative, args.sampler, args.rescale, seed=args.seed) for w in dict.fromkeys(args.scales)]
    pipeline = open_checked(args, wishes)
    sets = load_sets(pipeline, args)
    out = writable_folder(args.out or Path("runs/04_latent_sd/evaluate") / args.model.resolve().name)
    if sets:
        measure_sets(pipeline, sets, args, out)
    if wishes:
        measure_text(pipeline, wishes, args, out)


def measure_text(pipeline: Pipeline, wishes: list[Wish], args: Args, out: Path) -> None:
    """The table of attribute accuracy, results.csv, and a sheet of the pictures it was measured on."""
    import torch

    from common import viz
    from common.evaluate.creature_classifier import load_creature_classifier
    from common.io.pixels import to_float

    judge, splits = load_creature_classifier(), list(dict.fromkeys(args.splits))
    prompts = [ask(split, args.n, args.language, pipeline.size) for split in splits]
    settings = {"model": args.model, "n": args.n, "language": args.language, "sampler": args.sampler, "rescale": args.rescale,
                "negative": args.negative, "seed": args.seed}  # fmt: skip
    rows, shown = [], [p.real[:SHOWN] for p in prompts]

    def report(name: str, measured: list[Row]) -> None:
        rows.extend({"w": name, "split": split} | settings | row for split, row in zip(splits, measured, strict=True))
        print(line(name, measured), flush=True)
        save_rows(rows, out / "results.csv")  # after every scale: whoever stops here has all that was measured

    print(f"\n{args.n} prompts of creatures, {args.sampler}\n\n{header(splits)}")
    report("real", [measure(judge, p, p.real) for p in prompts])
    report("real, decoded", [measure(judge, p, through_vae(pipeline, p.real)) for p in prompts])
    report("chance", [floor(judge, p) for p in prompts])
    for wish in wishes:
        drawn = [draw_all(pipeline, p, wish) for p in prompts]
        report(f"{wish.w:g}", [measure(judge, p, pixels) for p, pixels in zip(prompts, drawn, strict=True)])
        shown += [pixels[:SHOWN] for pixels in drawn]
    columns = min(SHOWN, args.n)
    print(f"\nimages  {viz.save_picture(viz.grid(to_float(torch.cat(shown)), columns), out / 'grid.png')}  rows: real, then each w; "
          f"{' and '.join(splits)} in turn")  # fmt: skip
    print(f"table   {out / 'results.csv'}")


if __name__ == "__main__":
    run(main, Args)

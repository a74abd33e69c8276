"""What evaluate.py does: it measures prompt adherence, brightness, saturation and diversity at each guidance scale."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from cfg_pokemon.evaluation_plots import REFERENCES, SHOWN, plot_grid, plot_scales
from cfg_pokemon.flags import PixelEvaluationFlags
from cfg_pokemon.guidance import Guided
from common.cli import pick_device, writable_folder
from common.data.creatures.attributes import NAMES
from common.diffusion.denoiser import CLIP_MODES
from common.errors import UserError
from common.evaluate.creature_classifier import CreatureClassifier, load_creature_classifier
from common.evaluate.distances import bootstrap, one_thread
from common.evaluate.prompt_accuracy import (
    SPLITS,
    VARIANTS,
    Prompts,
    Row,
    chance_accuracy,
    check_creature_size,
    make_prompts,
    measure_accuracy,
    table_columns,
    table_header,
)
from common.io.files import from_here, write_atomically
from common.io.pixels import to_bytes
from common.io.progress import with_progress
from common.io.tables import write_csv
from common.models.pipeline import SamplingConfig, TextToImagePipeline, batches
from common.models.text_to_image_folder import open_pixel_pipeline

WITH_VARIANTS = 24  # prompts that are drawn VARIANTS times, for the diversity
SETTINGS = (
    "n",
    "model",
    "language",
    "sampler",
    "rescale",
    "clip",
    "negative",
    "seed",
)  # flags that results.csv repeats
SAMPLING = ("language", "sampler", "rescale", "clip", "interval", "negative", "seed")  # flags that name the folder


def evaluate_model(flags: PixelEvaluationFlags) -> None:
    """Measure a model, and print and save the tables and figures.
    Drawn images are kept, so that a stopped evaluation continues.
    """
    scales, splits = list(dict.fromkeys(flags.scales)), list(dict.fromkeys(flags.splits))
    config = SamplingConfig(1.0, flags.negative, flags.sampler, flags.rescale, flags.interval, seed=flags.seed)
    config = replace(config, clip_x0=CLIP_MODES[flags.clip])
    pipeline, classifier = open_checked(flags, config), load_creature_classifier()
    unusual = describe_unusual(flags)
    settings = {"what": unusual} | {name: getattr(flags, name) for name in SETTINGS}
    settings |= {
        "model": from_here(flags.model),
        "interval_low": flags.interval[0],
        "interval_high": flags.interval[1],
    }
    folder = Path("runs/02_cfg_pokemon/evaluate") / flags.model.resolve().name / unusual
    out, fingerprint = writable_folder(flags.out or folder), model_fingerprint(flags.model)
    prompts = [make_prompts(split, flags.n, flags.language, pipeline.size, WITH_VARIANTS) for split in splits]
    print(f"{flags.model}: {flags.n} prompts, {flags.sampler}, {unusual}\n\n{header(splits)}")
    rows, shown = [], {}

    def report(name: str, measured: Sequence[Row]) -> None:
        rows.extend({"w": name, "split": split} | settings | row for split, row in zip(splits, measured, strict=True))
        print(line(name, measured), flush=True)
        # after every scale, so that a stopped evaluation leaves what it has measured
        write_csv(out / "results.csv", rows)

    report("real", [measure(classifier, each, each.real, each.variants) for each in prompts])
    if flags.n > 1:
        report("chance", [chance_accuracy(classifier, each) for each in prompts])
    for w in scales:
        guided = replace(config, guidance_scale=w)
        drawn = [kept_images(pipeline, fingerprint, each, guided, out / "pictures") for each in prompts]
        report(f"{w:g}", [measure(classifier, each, *images) for each, images in zip(prompts, drawn, strict=True)])
        shown[w] = [pixels[:SHOWN] for pixels, _ in drawn]
    if flags.per_attribute:
        print(*(attribute_table(rows, split) for split in splits), sep="\n")
    title = f"{flags.n} prompts of each split; bands: 95 %; dashed: real pictures"
    print(f"\nplot    {plot_scales(rows, title, out / 'plot.png')}")
    print(f"images  {plot_grid(classifier, prompts, shown, out / 'grid.png')}")
    print(f"table   {out / 'results.csv'}")


def open_checked(flags: PixelEvaluationFlags, config: SamplingConfig) -> TextToImagePipeline:
    """Open the model, and refuse what cannot be measured before anything is drawn."""
    if not flags.scales or not flags.splits:
        raise UserError("give at least one of --scales and one of --splits, for instance --scales 1 3 --splits test")
    pipeline = open_pixel_pipeline(flags.model, pick_device(flags.device))
    check_creature_size(flags.model, pipeline)
    for w in flags.scales:
        Guided(pipeline.unet, pipeline.prediction, {}, {}, w, rescale=flags.rescale, interval=flags.interval)
    pipeline.noise_levels(config)
    return pipeline


def describe_unusual(flags: PixelEvaluationFlags) -> str:
    """A name for what differs from the usual settings: "plain", or "rescale=0.7,clip=dynamic"."""
    given, usual = asdict(flags), asdict(PixelEvaluationFlags())
    unusual = {key: given[key] for key in SAMPLING if given[key] != usual[key]}
    name = ",".join(
        f"{key}={'-'.join(f'{v:g}' for v in value) if key == 'interval' else value}" for key, value in unusual.items()
    )
    return "".join(c if c.isalnum() or c in "=,.-" else "_" for c in name)[:100] or "plain"


# ---------------------------------------------------------------------------------------------------------- the images


def kept_images(
    pipeline: TextToImagePipeline, model: str, prompts: Prompts, config: SamplingConfig, folder: Path
) -> tuple[Tensor, Tensor]:
    """One image of each prompt (N, 3, S, S), and VARIANTS of each of the first A (VARIANTS, A, 3, S, S), uint8.

    They are kept in the folder, under a name that changes with everything they depend on.
    model: fingerprint of the model's files
    """
    N, A = len(prompts.captions), min(len(prompts.captions), WITH_VARIANTS)
    captions = prompts.captions + prompts.captions[:A] * (VARIANTS - 1)
    key = hashlib.sha256(json.dumps([model, captions, asdict(config)]).encode()).hexdigest()[:16]
    path = folder / f"{prompts.split}-w={config.guidance_scale:g}-{key}.safetensors"
    if not path.exists():
        drawn = draw(pipeline, captions, config, f"w = {config.guidance_scale:g}, {prompts.split}")
        write_atomically(path, lambda file: file.write(save({"pixels": drawn})))
    pixels = load_file(path)["pixels"]
    return pixels[:N], pixels[[*range(A), *range(N, len(pixels))]].unflatten(0, (VARIANTS, A))


def draw(pipeline: TextToImagePipeline, captions: list[str], config: SamplingConfig, title: str) -> Tensor:
    """As pipeline.txt2img, with a progress bar and in bytes: (N, 3, S, S) uint8.
    Pixels that are not finite become grey.
    """
    drawn = []
    with with_progress(title, total=len(captions), unit="picture") as bar:
        for batch in batches(len(captions)):
            *_, last = pipeline.txt2img_steps(captions[batch], config, batch.start)
            drawn.append(to_bytes(last.x.nan_to_num(0.0).cpu()))
            bar.update(len(last.x))
    return torch.cat(drawn)


def model_fingerprint(folder: Path) -> str:
    """A hash of the model's files."""
    root, digest = folder if (folder / "unet").is_dir() else folder / "model", hashlib.sha256()
    parts = (root / part for part in ("unet", "scheduler", "text_encoder", "tokenizer"))
    for path in sorted(path for part in parts for path in part.rglob("*") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------- the numbers


def measure(classifier: CreatureClassifier, prompts: Prompts, pixels: Tensor, variants: Tensor) -> Row:
    """Every measure of the images of these prompts, (N, 3, S, S) uint8, and of some that share a prompt.
    variants: (VARIANTS, A, 3, S, S) uint8
    """
    row = measure_accuracy(classifier, prompts, pixels)
    attributes = {name: row.pop(name) for name in NAMES}
    values, at_the_ends = pixels.float() / 255, (pixels == 0) | (pixels == 255)
    each_image = {  # (N,)
        "brightness": values.mean((1, 2, 3)),
        "saturation": (values.amax(1) - values.amin(1)).mean((1, 2)),
        "burnt": at_the_ends.float().mean((1, 2, 3)),
    }
    with one_thread():
        for name, each in each_image.items():
            row |= bootstrap(lambda some: float(some.mean()), each.cpu().double(), times=1000).columns(name)
        spread = (variants.float() / 255).var(0).mean((1, 2, 3)).cpu().double()  # (A,)
        row |= bootstrap(lambda some: float(some.mean().sqrt()), spread, times=1000).columns("diversity")
    return row | attributes


# ----------------------------------------------------------------------------------------------------------- the table


def header(splits: Sequence[str]) -> str:
    colours = f"{'brightness':>16}{'saturation':>16}{'diversity':>16}"
    return table_header(splits, 7, f"{SPLITS[splits[0]]:^48}", colours)


def line(name: str, rows: Sequence[Row]) -> str:
    """One line of the table: the same scale, a row for each split."""
    columns = f"{name:>7}" + "".join(table_columns(row) for row in rows)
    return columns + colour_columns(rows[0]) if "diversity" in rows[0] else columns.rstrip()


def colour_columns(row: Row) -> str:
    """Brightness, saturation and diversity, each with half of its 95 % interval."""
    return "".join(f"{with_half(row, key):>16}" for key in ("brightness", "saturation", "diversity"))


def with_half(row: Row, key: str) -> str:
    """A measure with half of its 95 % interval: "0.682 ± 0.010"."""
    return f"{row[key]:.3f} ± {(row[f'{key}_high'] - row[f'{key}_low']) / 2:.3f}"


def attribute_table(rows: list[Row], split: str) -> str:
    """Accuracy of each attribute, a column for each scale."""
    mine = sorted((row for row in rows if row["split"] == split), key=lambda row: row["w"] in REFERENCES)  # these last
    titles = [row["w"] if row["w"] in REFERENCES else f"w = {row['w']}" for row in mine]
    lines = [f"\n{split:12}" + "".join(f"{title:>9}" for title in titles)]
    lines += [f"{name:12}" + "".join(f"{row[name]:>9.1%}" for row in mine) for name in NAMES]
    return "\n".join(lines)

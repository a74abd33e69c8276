"""What evaluate.py does: it measures the autoencoder on test images, and prompt adherence at each guidance scale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common import viz
from common.cli import pick_device, writable_folder
from common.data import Images
from common.diffusion.guidance import Guided
from common.errors import UserError
from common.evaluate.creature_classifier import load_creature_classifier
from common.evaluate.distances import bootstrap
from common.evaluate.prompt_accuracy import (
    Prompts,
    Row,
    chance_accuracy,
    check_creature_size,
    make_prompts,
    measure_accuracy,
    table_columns,
    table_header,
)
from common.io.files import from_here
from common.io.pixels import to_bytes, to_float
from common.io.progress import with_progress
from common.io.tables import write_csv
from common.models.pipeline import SamplingConfig, TextToImagePipeline, batches
from common.models.text_to_image_folder import open_latent_pipeline
from common.training.latents import check_fit
from latent_sd.concat_dataset import some_of
from latent_sd.flags import EvaluationFlags
from latent_sd.vae_trainer import measure_each

SHOWN = 12  # prompts of each split in the grid
SETTINGS = ("model", "n", "language", "sampler", "rescale", "negative", "seed")  # flags that results.csv repeats


def evaluate_model(flags: EvaluationFlags) -> None:
    """Measure a model, and print and save the tables and figures."""
    config = SamplingConfig(1.0, flags.negative, flags.sampler, flags.rescale, seed=flags.seed)
    configs = [replace(config, guidance_scale=w) for w in dict.fromkeys(flags.scales)]
    pipeline = open_checked(flags, configs)
    sets = load_sets(pipeline, flags.data, flags.data_dir, flags.n)
    out = writable_folder(flags.out or Path("runs/04_latent_sd/evaluate") / flags.model.resolve().name)
    if sets:
        measure_sets(pipeline, from_here(flags.model), sets, out)
    if configs:
        settings = {name: getattr(flags, name) for name in SETTINGS} | {"model": from_here(flags.model)}
        splits = dict.fromkeys(flags.splits)
        prompts = [make_prompts(split, flags.n, flags.language, pipeline.size) for split in splits]
        measure_text(pipeline, prompts, configs, settings, out)


def open_checked(flags: EvaluationFlags, configs: Sequence[SamplingConfig]) -> TextToImagePipeline:
    """Open the model, and refuse what cannot be measured before anything is drawn."""
    if not configs and not flags.data:
        raise UserError(
            "there is nothing to measure; give --data to measure the autoencoder, --scales to measure prompt adherence, or both"
        )
    if configs and not flags.splits:
        raise UserError("give at least one of --splits, for instance --splits test")
    pipeline = open_latent_pipeline(flags.model, pick_device(flags.device))
    check_creature_size(flags.model, pipeline)
    for config in configs:
        Guided(pipeline.unet, pipeline.prediction, {}, {}, config.guidance_scale, rescale=config.rescale)
        pipeline.noise_levels(config)
    return pipeline


# ----------------------------------------------------------------------------------------------------- the autoencoder


def load_sets(pipeline: TextToImagePipeline, names: Sequence[str], data_dir: Path, n: int) -> dict[str, Images]:
    """n test images of each set. Raises UserError for a set whose images do not fit the autoencoder."""
    sets = {name: some_of((name,), pipeline.size, data_dir, "test", n, pipeline.image_channels) for name in names}
    for images in sets.values():
        check_fit(pipeline.vae, images, "--model")
    return sets


def measure_vae(pipeline: TextToImagePipeline, name: str, images: Images) -> Row:
    """PSNR of the reconstructions with its 95 % interval over images, and standard deviation of the scaled latents."""
    found = measure_each(pipeline.vae, images)
    psnr = bootstrap(lambda some: float(some.mean()), found["psnr"].cpu().double())
    return {
        "set": name,
        "images": len(images),
        "size": images.size,
        "psnr": psnr.value,
        "psnr_low": psnr.low,
        "psnr_high": psnr.high,
        "scaled_std": pipeline.vae.cfg.scaling_factor * float(found["latents"].std(correction=0)),
    }


def measure_sets(pipeline: TextToImagePipeline, model: str, sets: dict[str, Images], out: Path) -> None:
    """The table of the autoencoder, and vae.csv."""
    print(f"{model}: the autoencoder on test images\n\n{'':16}{'images':>10}{'PSNR':>29}{'scaled latents, sd':>22}")
    found = [measure_vae(pipeline, name, images) for name, images in sets.items()]
    for row in found:
        psnr = f"{row['psnr']:.2f} dB ({row['psnr_low']:.2f} to {row['psnr_high']:.2f})"
        print(f"{row['set']:>16}{row['images']:>10}{psnr:>29}{row['scaled_std']:>22.3f}")
    write_csv(out / "vae.csv", found)


# ---------------------------------------------------------------------------------------------------- prompt adherence


def measure_text(
    pipeline: TextToImagePipeline, prompts: list[Prompts], configs: Sequence[SamplingConfig], settings: Row, out: Path
) -> None:
    """The table of accuracies, results.csv, and a grid of the images that were measured."""
    classifier, splits, n = load_creature_classifier(), [p.split for p in prompts], len(prompts[0].captions)
    rows, shown = [], [p.real[:SHOWN] for p in prompts]

    def report(name: str, measured: list[Row]) -> None:
        rows.extend({"w": name, "split": split} | settings | row for split, row in zip(splits, measured, strict=True))
        print((f"{name:>16}" + "".join(table_columns(row) for row in measured)).rstrip(), flush=True)
        # after every scale, so that a stopped evaluation leaves what it has measured
        write_csv(out / "results.csv", rows)

    print(f"\n{n} prompts of creatures, {configs[0].sampler}\n\n{table_header(splits, 16)}")
    report("real", [measure_accuracy(classifier, p, p.real) for p in prompts])
    report("real, decoded", [measure_accuracy(classifier, p, reconstruct(pipeline, p.real)) for p in prompts])
    report("chance", [{"accuracy": chance_accuracy(classifier, p)["accuracy"]} for p in prompts])
    for config in configs:
        drawn = [draw_all(pipeline, p, config) for p in prompts]
        report(
            f"{config.guidance_scale:g}",
            [measure_accuracy(classifier, p, pixels) for p, pixels in zip(prompts, drawn, strict=True)],
        )
        shown += [pixels[:SHOWN] for pixels in drawn]
    grid = viz.grid(to_float(torch.cat(shown)), min(SHOWN, n))
    print(
        f"\nimages  {viz.save_picture(grid, out / 'grid.png')}  rows: real, then each w; {' and '.join(splits)} in turn"
    )
    print(f"table   {out / 'results.csv'}")


def draw_all(pipeline: TextToImagePipeline, prompts: Prompts, config: SamplingConfig) -> Tensor:
    """One image of each prompt, with a progress bar: (N, 3, S, S) uint8"""
    drawn, title = [], f"w = {config.guidance_scale:g}, {prompts.split}"
    with with_progress(title, total=len(prompts.captions), unit="picture") as bar:
        for batch in batches(len(prompts.captions)):
            *_, last = pipeline.txt2img_steps(prompts.captions[batch], config, batch.start)
            drawn.append(to_bytes(pipeline.decode(last.x)))
            bar.update(len(drawn[-1]))
    return torch.cat(drawn)


def reconstruct(pipeline: TextToImagePipeline, pixels: Tensor) -> Tensor:
    """Encoded and decoded. (N, 3, S, S) uint8 in and out"""
    return torch.cat(
        [to_bytes(pipeline.decode(pipeline.encode(to_float(pixels[batch])))) for batch in batches(len(pixels))]
    )

"""What ablations.py does: it trains networks that differ in one setting, and measures them in the same way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cfg_pokemon import evaluation, memorization
from cfg_pokemon.ablation_plots import plot_brightness, plot_copies
from cfg_pokemon.flags import AblationFlags, PixelModelFlags
from cfg_pokemon.trainer import train_model
from common.cli import pick_device, writable_folder
from common.data.creatures.dataset import load_creatures
from common.evaluate.creature_classifier import load_creature_classifier
from common.evaluate.prompt_accuracy import Prompts, Row, make_prompts
from common.io.pixels import to_bytes
from common.io.tables import write_csv
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text_to_image_folder import open_pixel_pipeline
from common.training.settings import resumed, with_folder

SIZE = 16  # pixels a side of all networks
SETTINGS = {"size": SIZE, "channels": (16, 32), "batch_size": 16, "lr": 2e-3, "n": 10_000, "precision": "no"}
SCALES = {"brightness": (0.0, 1.0, 2.0, 3.0, 5.0, 8.0), "size": (1.0, 3.0), "epochs": (1.0, 3.0)}
REMEDIES = {  # tried on the first network of the study of brightness
    "rescale 0.7": {"rescale": 0.7},
    "no clipping": {"clip_x0": False},
    "dynamic thresholding": {"clip_x0": "dynamic"},
    "interval 0.3 to 5": {"interval": (0.3, 5.0)},
}
STUDIES = {
    "brightness": {
        "as it is": {}, "mirrored": {"augment": "mirror"}, "brightness jittered": {"augment": "jitter"}, "turned, black corners": {"augment": "turn"},
        "scaled linear": {"schedule": "scaled_linear"}, "zero terminal SNR": {"schedule": "scaled_linear_zero_snr"},
    },
    "size": {f"{n:,} images": {"n": n} for n in (100, 800, 10_000)},
    "epochs": {"300 epochs": {"n": 100, "epochs": 300}, "2,000 epochs": {"n": 100, "epochs": 2000}},
}  # fmt: skip
COPY_NUMBERS = ("too_near", "too_near_low", "too_near_high", "nearer", "nearer_low", "nearer_high")


def run_study(study: AblationFlags) -> None:
    """Train and measure the networks of a study for each seed, and print and save its table and figure."""
    writable_folder(study.out)
    rows: list[Row] = []
    table, figure = study.out / f"{study.study}.csv", study.out / f"{study.study}.png"
    measure = measure_brightness if study.study == "brightness" else measure_copies
    print(header(study.study))
    for seed in study.seeds:
        rows += measure(study, seed)
        write_csv(table, rows)
    if study.study == "brightness":
        prompts = prompts_of(study, "test")
        measured = evaluation.measure(load_creature_classifier(), prompts, prompts.real, prompts.variants)
        real = {"what": "real pictures", "w": 1} | measured
        print(line(real, study.study))
        plot_brightness(rows, real, figure)
    else:
        print("without memorization 1 % are too near, and 50 % nearer than unseen")
        plot_copies(rows, figure)
    print(f"{table}\n{figure}")


# -------------------------------------------------------------------------------------------------------- the networks


def training_flags(study: AblationFlags, change: dict[str, Any], seed: int) -> dict[str, Any]:
    """The flags of train.py for one network."""
    flags = SETTINGS | {"steps": study.steps, "seed": seed, "device": study.device} | change
    if epochs := flags.pop("epochs", None):
        flags["steps"] = max(1, epochs * flags["n"] // flags["batch_size"])
    return flags


def trained(study: AblationFlags, name: str, change: dict[str, Any], seed: int) -> Path:
    """The run folder of one network, which is trained now unless it was before."""
    flags = training_flags(study, change, seed)
    folder = study.out / "models" / folder_name(flags)
    if not (folder / "samples.png").exists():  # the last file that a training writes
        print(f"\n{name}, seed {seed}: {flags['steps']} steps", flush=True)
        if (folder / "checkpoints").exists():
            train_model(resumed(PixelModelFlags(resume=folder, device=study.device)))
        else:
            new = PixelModelFlags(out=folder, sample_every=10**9, save_every=250, **flags)
            train_model(with_folder(new, "02_cfg_pokemon"))
    return folder


def folder_name(flags: dict[str, Any]) -> str:
    """The flags that are not as in SETTINGS, as a folder's name: studies that need the same network share it."""
    unlike = {key: value for key, value in flags.items() if value != SETTINGS.get(key) and key != "device"}
    return ",".join(f"{key}={value}" for key, value in unlike.items())


# ---------------------------------------------------------------------------------------------------- the measurements


def prompts_of(study: AblationFlags, split: str) -> Prompts:
    return make_prompts(split, study.n, "both", SIZE, evaluation.WITH_VARIANTS)


def measure_images(
    study: AblationFlags, pipeline: TextToImagePipeline, prompts: Prompts, config: SamplingConfig, model: Path
) -> Row:
    """What evaluate.py measures, for one network and one way to sample."""
    fingerprint = evaluation.model_fingerprint(model)
    drawn = evaluation.kept_images(pipeline, fingerprint, prompts, config, study.out / "pictures")
    return evaluation.measure(load_creature_classifier(), prompts, *drawn)


def measure_memorization(
    pipeline: TextToImagePipeline, captions: list[str], config: SamplingConfig, n_train: int
) -> Row:
    """What memorization.py measures: shares of samples that are too near to the training set,
    and nearer than to an unseen one.
    """
    samples = to_bytes(pipeline.txt2img(captions, config))
    train = load_creatures("train", n_train, pipeline.size).pixels
    found = memorization.compare_views(load_creature_classifier(), samples, train, memorization.TEST)
    return {f"{key}_{name}": numbers[key] for name, (numbers, _, _) in found.items() for key in COPY_NUMBERS}


def measure_brightness(study: AblationFlags, seed: int) -> list[Row]:
    """Every network at every scale, and the first with every remedy at one scale."""
    prompts, rows = prompts_of(study, "test"), []
    for k, (name, change) in enumerate(STUDIES["brightness"].items()):
        folder = trained(study, name, change, seed)
        pipeline = open_pixel_pipeline(folder, pick_device(study.device))
        ways = [(name, SamplingConfig(w)) for w in SCALES["brightness"]]
        ways += [(remedy, replace(SamplingConfig(5.0), **how)) for remedy, how in REMEDIES.items()] if k == 0 else []
        for way, config in ways:
            row = {"what": way, "seed": seed, "w": config.guidance_scale}
            rows.append(row | measure_images(study, pipeline, prompts, config, folder))
            print(line(rows[-1], "brightness"), flush=True)
    return rows


def measure_copies(study: AblationFlags, seed: int) -> list[Row]:
    """Every network on captions of the test and of the held-out split,
    and how near its images are to its training set.
    """
    asked, rows = {split: prompts_of(study, split) for split in ("test", "heldout")}, []
    for name, change in STUDIES[study.study].items():
        folder = trained(study, name, change, seed)
        pipeline = open_pixel_pipeline(folder, pick_device(study.device))
        for config in map(SamplingConfig, SCALES[study.study]):
            row = {"what": name, "seed": seed, "w": config.guidance_scale}
            for split, prompts in asked.items():
                measured = measure_images(study, pipeline, prompts, config, folder)
                row |= {f"{key}_{split}": value for key, value in measured.items()}
            rows.append(row | measure_memorization(pipeline, asked["test"].captions, config, change["n"]))
            print(line(rows[-1], study.study), flush=True)
    return rows


# ----------------------------------------------------------------------------------------------------------- the table


def header(study: str) -> str:
    columns = (
        ("brightness", "saturation", "burnt", "diversity", "accuracy")
        if study == "brightness"
        else ("test", "held out", "too near (pixels, features)", "nearer than unseen (pixels, features)")
    )
    return f"{'':24}{'w':>4}" + "".join(f"{name:>{max(18, len(name) + 3)}}" for name in columns)


def line(row: Row, study: str) -> str:
    """One line of the table."""
    if study == "brightness":
        cells = [evaluation.with_half(row, key) for key in ("brightness", "saturation", "burnt", "diversity")]
        cells += [f"{row['accuracy']:.1%}"]
    else:
        cells = [
            f"{row[f'accuracy_{split}']:.1%} ({row[f'accuracy_low_{split}']:.0%}-{row[f'accuracy_high_{split}']:.0%})"
            for split in ("test", "heldout")
        ]
        cells += [f"{row[f'{key}_pixels']:.0%}, {row[f'{key}_features']:.0%}" for key in ("too_near", "nearer")]
    wide = [18] * 5 if study == "brightness" else [18, 18, 30, 40]
    return f"{row['what']:24}{row['w']:>4g}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, wide, strict=True))

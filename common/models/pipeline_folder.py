"""Finds the folder of a diffusers pipeline and checks its parts.

It may be a local folder, a run folder, a checkpoint in one file, or a repository in the hub's cache or on the hub.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.errors import UserError, listed
from common.io import hub
from common.io.files import read_json
from common.io.weight_files import choose, chosen_files, variant_of

EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INDEX = "model_index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx")
TEXTS = (".json", ".txt", ".model", ".jinja")  # configurations and vocabularies


def find_pipeline(name: str | Path, variant: str | None = None) -> Path:
    """The folder of a pipeline, its parts checked. name: a local folder, a run folder, or owner/name or
    owner/name@revision of the hub. variant: of the weights that are wanted, such as "fp16"

    What the hub's cache holds is not downloaded again. Raises UserError that says what was looked for and what to do.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        root = next((folder for folder in (local, local / "model") if (folder / INDEX).exists()), local)
        check_parts(root)
        check_variant(root, variant)
        return root
    name = str(name)
    if local.is_file():
        from common.models.single_file.conversion import as_folder

        return as_folder(local, ("sd", "xl"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"there is no folder {name}; --model takes the folder of a diffusers pipeline, or a hub id such as {EXAMPLE}"
        )
    folder = hub.cached(name, INDEX, example=EXAMPLE)
    if folder is None or missing_parts(folder) or (variant and variant not in variants_in(folder)):
        needed = partial(needed_files, variant=variant)
        folder = hub.download(name, needed, f"give a local folder with --model instead, or {hub.MIRROR}", EXAMPLE)
        check_parts(folder)
    check_variant(folder, variant)
    return folder


def needed_files(files: list[str], fetch: Callable[[str], Path], variant: str | None = None) -> list[str]:
    """The files of a repository that make up its pipeline:
    each part's configuration, and one of the sets of weights that there are: that of the variant where it has one.
    """
    if INDEX not in files:
        raise UserError(
            f"there is no {INDEX} among the files of that repository ({listed(files) or 'nothing'}), so it holds no diffusers pipeline"
        )
    wanted = [INDEX]
    for part in parts_of(read_json(fetch(INDEX))):
        names = [
            file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/") and file.count("/") == 1
        ]
        wanted += [f"{part}/{name}" for name in names if name.endswith(TEXTS) and ".index." not in name]
        wanted += [f"{part}/{name}" for name in chosen_files(names, variant)]
    return wanted


def quiet() -> None:
    """Turn off the progress bars and log lines of diffusers and transformers. Errors reach the user as a UserError,
    and diffusers logs a missing .safetensors file as an error even where it then opens the .bin."""
    import logging

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
        library.utils.logging.disable_progress_bar()


# ----------------------------------------------------------------------------------------------------------- its parts


def parts_of(index: dict) -> list[str]:
    """The parts that model_index.json names."""
    return [
        name
        for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and kind and kind[0] is not None
    ]


def check_parts(folder: Path) -> None:
    """Refuse a folder that holds no pipeline, naming what is missing and what is there."""
    if not (folder / INDEX).exists():
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise UserError(
            f"{folder} holds no pipeline: {INDEX} is missing ({what_is_there(folder, there)}); "
            f"a Stable Diffusion folder has {INDEX}, unet, vae, scheduler, text_encoder and tokenizer"
        )
    missing = missing_parts(folder)
    if missing:
        raise UserError(
            f"the pipeline in {folder} is not whole: {', '.join(missing)} is missing; copy or download it again"
        )


def what_is_there(folder: Path, there: list[str]) -> str:
    """What a folder without an index holds: one part of a pipeline, or other files."""
    if (folder / "config.json").exists() and (kind := read_json(folder / "config.json").get("_class_name")):
        whole = (
            f"; name the folder above it, {folder.resolve().parent}"
            if (folder.resolve().parent / INDEX).exists()
            else ""
        )
        return f"there is one part, a {kind}{whole}"
    return f"there is {listed(there) or 'nothing'}"


def variants_in(folder: Path) -> list[str]:
    """The variants that any part has weights in: ["bf16", "fp16"]."""
    return sorted({found for file in folder.glob("*/*") if (found := variant_of(file.name))})


def check_variant(folder: Path, variant: str | None) -> None:
    """Refuse a variant that no part has."""
    if variant and variant not in (there := variants_in(folder)):
        known = f"there are {', '.join(there)}" if there else "its weights have no variants"
        raise UserError(f"no part of {folder} has weights of the variant '{variant}' ({known}); leave --variant out")


def missing_parts(folder: Path) -> list[str]:
    """What model_index.json names and the folder lacks: ["vae", "unet/config.json", "unet (weights)"]."""
    missing = []
    for name in parts_of(read_json(folder / INDEX)):
        # google/ddpm-cifar10-32 has all files in one folder
        flat = folder / ("scheduler_config.json" if "scheduler" in name else "config.json")
        part = folder / name if (folder / name).is_dir() or not flat.exists() else folder
        files = {path.name for path in part.glob("*")}
        if not part.is_dir():
            missing.append(name)
        elif name.startswith("tokenizer"):
            missing += [] if files & {"tokenizer.json", "vocab.json", "spiece.model"} else [f"{name} (vocabulary)"]
        elif not any(file.endswith("config.json") for file in files):
            missing.append(f"{name}/config.json")
        elif "config.json" in files:
            missing += weights_missing(part, files)
    return missing


def weights_missing(part: Path, files: set[str]) -> list[str]:
    """What the weights of a part lack: all of them, or shards that their index names."""
    name, _ = choose(files) or (None, None)
    if name is None:
        others = [file for file in sorted(files) if file.endswith(WEIGHTS)]
        known = " under a name that diffusers knows, such as diffusion_pytorch_model.safetensors; there is "
        return [f"{part.name} (weights{known + listed(others) if others else ''})"]
    places = read_json(part / name).get("weight_map") if name.endswith(".json") else None
    shards = places.values() if isinstance(places, dict) else ()
    return sorted({f"{part.name}/{shard}" for shard in shards if str(shard) not in files})

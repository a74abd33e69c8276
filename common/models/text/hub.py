"""Finds a named text encoder: in a local folder, in the cache of the Hugging Face hub, or on the hub itself."""

from pathlib import Path
from typing import NoReturn

from common.errors import UserError
from common.io import hub
from common.io.weight_files import TRANSFORMERS, chosen_files, look_for_weights

EXAMPLE = "openai/clip-vit-base-patch32"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)


def find_encoder(name: str) -> tuple[Path, Path]:
    """(folder of the text encoder, folder of its tokenizer) for a local folder or a hub id;
    downloads only what is missing.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return parts(local) or _incomplete(local)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no folder {name}; give a folder with a text encoder, or a hub id such as {EXAMPLE}")
    return _cached(name) or _downloaded(name)


def parts(folder: Path) -> tuple[Path, Path] | None:
    """Both in one folder (a CLIP model), or in the two subfolders of a diffusers model;
    None where something is missing.
    """
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not encoder.is_dir():
        encoder = tokenizer = folder
    has_vocabulary = any((tokenizer / file).exists() for file in ("tokenizer.json", "vocab.json", "vocab.txt"))
    return (
        (encoder, tokenizer)
        if has_vocabulary and (encoder / "config.json").exists() and look_for_weights(encoder)
        else None
    )


def _incomplete(folder: Path) -> NoReturn:
    raise UserError(
        f"{folder} holds no text encoder: config.json, {TRANSFORMERS} or another form of it, and a tokenizer were expected there, "
        "or in its subfolders text_encoder and tokenizer"
    )


def _cached(name: str) -> tuple[Path, Path] | None:
    folder = hub.cached(name, "config.json", "text_encoder/config.json", example=EXAMPLE)
    return parts(folder) if folder else None


def _downloaded(name: str) -> tuple[Path, Path]:
    folder = hub.download(
        name, lambda files, _: wanted(files), f"give a local folder instead, or {hub.MIRROR}", EXAMPLE
    )
    return parts(folder) or _incomplete(folder)


def wanted(files: list[str]) -> list[str]:
    """Which of a repository's files make up its text encoder: one file of weights, not the image model's gigabytes."""
    split = any(file.startswith("text_encoder/") for file in files)
    encoder, tokenizer = ("text_encoder/", "tokenizer/") if split else ("", "")
    own = [file.removeprefix(encoder) for file in files if file.startswith(encoder)]
    names = ["config.json", *chosen_files(own)]
    return [
        *(encoder + file for file in names),
        *(tokenizer + file for file in TOKENIZER if tokenizer + file in files),
    ]

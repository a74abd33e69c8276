"""Finds a named text encoder: in a local folder, in the cache of the Hugging Face hub, or on the hub itself."""

from pathlib import Path

from common.errors import UserError
from common.io import hub
from common.io.weight_files import TRANSFORMERS, chosen_files, look_for_weights

EXAMPLE = "openai/clip-vit-base-patch32"
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt")


def find_encoder(name: str) -> tuple[Path, Path]:
    """(folder of the text encoder, folder of its tokenizer) for a local folder or a hub id;
    downloads only what is missing.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(
                f"there is no folder {name}; give a folder with a text encoder, or a hub id such as {EXAMPLE}"
            )
        cached = hub.cached(name, "config.json", "text_encoder/config.json", example=EXAMPLE)
        advice = f"give a local folder instead, or {hub.MIRROR}"
        if cached and (found := parts(cached)):
            return found
        folder = hub.download(name, lambda files, _: wanted(files), advice, EXAMPLE)
    found = parts(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no text encoder: config.json, {TRANSFORMERS} or another form of it, and a tokenizer were "
            "expected there, or in its subfolders text_encoder and tokenizer"
        )
    return found


def parts(folder: Path) -> tuple[Path, Path] | None:
    """Both in one folder (a CLIP model), or in the two subfolders of a diffusers model;
    None where something is missing.
    """
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not encoder.is_dir():
        encoder = tokenizer = folder
    has_vocabulary = any((tokenizer / file).exists() for file in VOCABULARIES)
    whole = has_vocabulary and (encoder / "config.json").exists() and look_for_weights(encoder)
    return (encoder, tokenizer) if whole else None


def wanted(files: list[str]) -> list[str]:
    """Which of a repository's files make up its text encoder: one file of weights, not the image model's gigabytes."""
    split = any(file.startswith("text_encoder/") for file in files)
    encoder, tokenizer = ("text_encoder/", "tokenizer/") if split else ("", "")
    own = [file.removeprefix(encoder) for file in files if file.startswith(encoder)]
    names = ["config.json", *chosen_files(own)]
    return [*(encoder + file for file in names), *(tokenizer + file for file in FILES if tokenizer + file in files)]

"""Where a named text encoder lies: a local folder, the cache of the Hugging Face hub, or the hub itself."""

import os
from pathlib import Path

from common.errors import UserError, explain
from common.network import REACH_SECONDS, reachable
from common.weight_files import SHARD, TRANSFORMERS, choose, look_for_weights

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt")


def find_encoder(name: str) -> tuple[Path, Path]:
    """(folder of the text encoder, folder of its tokenizer) for a local folder or a hub id; downloads only what is missing."""
    local = Path(name).expanduser()
    if local.is_dir():
        return parts(local) or _incomplete(local)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no folder {name}; give a folder with a text encoder, or a hub id such as openai/clip-vit-base-patch32")
    return _cached(name) or _downloaded(name)


def parts(folder: Path) -> tuple[Path, Path] | None:
    """Both in one folder (a CLIP model), or in the two subfolders of a diffusers model; None where something is missing."""
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not encoder.is_dir():
        encoder = tokenizer = folder
    words = any((tokenizer / file).exists() for file in ("tokenizer.json", "vocab.json", "vocab.txt"))
    return (encoder, tokenizer) if words and (encoder / "config.json").exists() and look_for_weights(encoder) else None


def _incomplete(folder: Path):
    raise UserError(
        f"{folder} holds no text encoder: config.json, {TRANSFORMERS} or another form of it, and a tokenizer were expected there, "
        "or in its subfolders text_encoder and tokenizer"
    )


def _cached(name: str) -> tuple[Path, Path] | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:  # the patterns, for without them a copy that holds anything less than the whole repository counts as none
        return parts(Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json", "text_encoder/config.json"])))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise UserError(f"'{name}' is neither a folder nor a hub id such as openai/clip-vit-base-patch32") from None


def _downloaded(name: str) -> tuple[Path, Path]:
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    advice = "give a local folder instead, or name a mirror in the environment variable HF_ENDPOINT"
    if not reachable(endpoint):
        raise UserError(
            f"'{name}' is no local folder and not in the hub's cache, and {endpoint} did not answer within {REACH_SECONDS} s; {advice}"
        )
    hub = HfApi(endpoint=endpoint)
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=wanted(hub.list_repo_files(name))))
    except Exception as problem:  # the hub's own errors, those of its network library, OSError
        raise UserError(f"'{name}' could not be downloaded from {endpoint} ({explain(problem)}); {advice}") from problem
    return parts(folder) or _incomplete(folder)


def wanted(files: list[str]) -> list[str]:
    """Which of a repository's files make up its text encoder: one file of weights, not the image model's gigabytes."""
    split = any(file.startswith("text_encoder/") for file in files)
    encoder, tokenizer = ("text_encoder/", "tokenizer/") if split else ("", "")
    own = [file.removeprefix(encoder) for file in files if file.startswith(encoder)]
    name, _ = choose(own) or (None, None)
    shards = [file for file in own if SHARD.search(file) and name and name.endswith(".json") and Path(file).suffix in name]
    return [encoder + "config.json", *(encoder + file for file in (name, *shards) if file), *(tokenizer + file for file in TOKENIZER if tokenizer + file in files)]

"""The files that hold the weights of one component (unet/, vae/, text_encoder/), in every form that `diffusers` and
`transformers` write.

    diffusion_pytorch_model.safetensors                one file; of transformers: model.safetensors
    diffusion_pytorch_model.safetensors.index.json     an index, and the shards that it names
    diffusion_pytorch_model.bin                        a pickle of torch; of transformers: pytorch_model.bin
    diffusion_pytorch_model.fp16.safetensors           a variant: half precision (fp16, bf16), or before averaging
    (non_ema)

This module looks at names only and imports nothing heavy; common/io/state_dict.py reads the files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, listed
from common.io.files import read_json

DIFFUSERS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS = "model.safetensors"
FORMS = (  # in the order of from_pretrained: diffusers takes an index before a file, transformers a file before an index
    f"{DIFFUSERS}.index.json", DIFFUSERS, TRANSFORMERS, f"{TRANSFORMERS}.index.json",
    "diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.bin.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
VARIANT = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)\.(?P<first>[\w-]+\.)?(safetensors|bin)(?P<index>\.index(\.(?P<last>[\w-]+))?\.json)?"
)
SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class WeightFiles:
    """source: the file that was looked for, which names the parts where there is more than one."""

    source: Path
    files: tuple[Path, ...]
    variant: str | None = None


def find_weights(folder: Path, expected: str = DIFFUSERS) -> WeightFiles:
    """The weights of a component's folder: those without a variant first, else its best variant.
    expected: the name in the refusal.
    """
    found = look_for_weights(folder)
    if found is None:
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise UserError(
            f"{folder / expected} is missing, and so are its other forms (a .bin file, a variant such as .fp16, shards with an index); "
            f"{folder} holds {listed(there) or 'nothing'}"
        )
    return found


def look_for_weights(folder: Path) -> WeightFiles | None:
    """The same; None where there are none."""
    chosen = choose(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else None
    return WeightFiles(folder / chosen[0], parts_of(folder / chosen[0]), chosen[1]) if chosen else None


def choose(names: Iterable[str], wanted: str | None = None) -> tuple[str, str | None] | None:
    """(file or index, its variant) among the names of a folder. wanted: the variant that comes first, if it is there"""
    names = set(names)
    variants = [(rank(variant, name), name, variant) for name in names if (variant := variant_of(name))]
    asked_for = [found for found in variants if found[2] == wanted]
    if not asked_for and (name := next((form for form in FORMS if form in names), None)):
        return name, None
    found = min(asked_for or variants, default=None)
    return found and found[1:]


def chosen_files(names: Iterable[str], wanted: str | None = None) -> list[str]:
    """The same, with the shards that lie beside an index: what is to be downloaded of a folder.
    Empty where there are no weights.
    """
    names = sorted(names)
    name, variant = choose(names, wanted) or (None, None)
    if name is None or not name.endswith(".json"):
        return [name] if name else []
    whole = re.sub(r"\.index.*", "", name)
    whole = (
        re.sub(r"\.(safetensors|bin)$", rf".{variant}\g<0>", whole)
        if variant and f".{variant}." not in whole
        else whole
    )
    return [name, *(shard for shard in names if SHARD.search(shard) and SHARD.sub("", shard) == whole)]


def variant_in(folder: Path) -> str | None:
    """The argument `variant` of a pipeline's from_pretrained:
    the variant of the first part that has only such weights.
    """
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    return next((found.variant for part in parts if (found := look_for_weights(part)) and found.variant), None)


def variant_of(name: str) -> str | None:
    """'fp16' of model.fp16.safetensors and of model.safetensors.index.fp16.json;
    None for any other name, shards among them.
    """
    found = VARIANT.fullmatch(name)
    if found is None or SHARD.search(name):
        return None
    return (found["first"] or "").rstrip(".") or found["last"]


def rank(variant: str, name: str) -> tuple:
    """The order of variants: averaged weights before others, safetensors before pickles, and fp16 first."""
    return (
        variant == "non_ema",
        ".bin" in name,
        (("fp16", "bf16") + (variant,)).index(variant),
        not name.endswith(".json"),
    )


def parts_of(source: Path) -> tuple[Path, ...]:
    """The file itself, or the shards that an index names: files of the same folder only."""
    if source.suffix != ".json":
        return (source,)
    places = read_json(source).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(
        isinstance(name, str) and re.fullmatch(r"[^/\\\0]+\.(safetensors|bin)", name) for name in names
    ):
        raise UserError(
            f"{source} does not name the shards: its weight_map should give the name of a file in {source.parent} for every weight"
        )
    files = tuple(source.parent / name for name in sorted(set(names)))
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{source.parent} lacks {len(missing)} of the {len(files)} shards that {source.name} names, the first is {missing[0]}; copy or download it again"
        )
    return files

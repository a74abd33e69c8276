"""The cost of several trainings side by side, read from the results.json of their run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_type_hints

from common.errors import UserError, explain
from common.io.config_values import check_values
from common.io.files import read_json
from common.io.ranges import Range
from finetune_diffusers.flags import OUT
from finetune_diffusers.training.loop.memory_usage import Cost, format_bytes

# What a program leaves for others to open: the first of these that a run folder has. The newest milestone is that of
# the package.
RESULTS = ("*.safetensors", "model/unet/*.safetensors", "controlnet/*.safetensors", "model-*.pt")
HEAD = ("run", "weights trained", "weights, gradients, optimizer, average", "peak memory", "time", "steps", "file")


def print_costs(runs: Sequence[Path]) -> None:
    """A table in Markdown, a row for each run folder; without any, for all in runs/05_finetune_diffusers."""
    runs = runs or sorted(path.parent for path in OUT.glob("*/results.json"))
    if not runs:
        raise UserError(
            f"no folder in {OUT} holds a results.json, which a training writes at its end; make one, for instance with: python 05_finetune_diffusers/lora.py"
        )
    for cells in (HEAD, ["---"] * len(HEAD), *map(cost_row, runs)):
        print("| " + " | ".join(cells) + " |")


def cost_row(folder: Path) -> list[str]:
    """The cells of one run."""
    path, number = folder / "results.json", Annotated[float, Range(0, 1e15)]
    if not path.exists():
        raise UserError(f"there is no {path}, which a training of this chapter writes at its end")
    found = read_json(path)
    try:
        cost, seconds, steps = Cost(**found["cost"]), found["seconds"], found["steps"]
    except (KeyError, TypeError) as problem:
        raise UserError(f"{path} does not say what the run cost ({explain(problem)})") from problem
    rules = {name: kind if kind is str else number for name, kind in get_type_hints(Cost).items()}
    check_values(
        vars(cost) | {"seconds": seconds, "steps": steps}, rules | {"seconds": number, "steps": number}, str(path)
    )
    minutes, rest = divmod(round(seconds), 60)
    weights, peak = f"{cost.trained:,} of {cost.weights:,}", f"{format_bytes(cost.peak)} ({cost.device})"
    time = f"{minutes} min {rest} s"
    return [folder.name, weights, format_bytes(cost.kept), peak, time, f"{steps:,}", result_size(folder)]


def result_size(folder: Path) -> str:
    """The size of the file that the run leaves for others to open, or ""."""
    for pattern in RESULTS:
        if found := sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
            return format_bytes(found[-1].stat().st_size)
    return ""

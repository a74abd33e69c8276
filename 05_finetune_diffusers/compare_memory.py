"""What the trainings of this chapter cost, side by side: weights, memory, time, and the size of what they leave behind.

  python 05_finetune_diffusers/compare_memory.py                                    every run in runs/05_finetune_diffusers
  python 05_finetune_diffusers/compare_memory.py RUN RUN                            these

Each training leaves results.json in its run folder; this reads them and trains nothing. The table is written in Markdown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

from tyro.conf import Positional

from common.cli import run
from common.errors import UserError, explain
from common.io.config_values import check_values
from common.io.files import read_json
from common.io.ranges import Range
from finetune_diffusers.models import OUT

# What a program leaves for others to open: the first of these that a run folder has. The newest milestone is that of the package.
RESULTS = ("*.safetensors", "model/unet/*.safetensors", "controlnet/*.safetensors", "model-*.pt")
HEAD = ("run", "weights trained", "weights, gradients, optimizer, average", "peak memory", "time", "steps", "file")


@dataclass(frozen=True)
class Args:
    runs: Positional[tuple[Path, ...]] = ()
    """Run folders; by default all in runs/05_finetune_diffusers."""


def main(args: Args) -> None:
    runs = args.runs or sorted(path.parent for path in OUT.glob("*/results.json"))
    if not runs:
        raise UserError(f"no folder in {OUT} holds a results.json, which a training writes at its end; make one, for instance with: python 05_finetune_diffusers/lora.py")
    rows = [HEAD, ["---"] * len(HEAD), *map(row, runs)]
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def row(folder: Path) -> list[str]:
    """One run: numbers as people read them."""
    from finetune_diffusers.training.memory_usage import Cost, size

    if not (folder / "results.json").exists():
        raise UserError(f"there is no {folder / 'results.json'}, which a training of this chapter writes at its end")
    found, number = read_json(folder / "results.json"), Annotated[float, Range(0, 1e15)]
    try:
        cost, seconds, steps = Cost(**found["cost"]), found["seconds"], found["steps"]
    except (KeyError, TypeError) as problem:
        raise UserError(f"{folder / 'results.json'} does not say what the run cost ({explain(problem)})") from problem
    rules = {name: kind if kind is str else number for name, kind in get_type_hints(Cost).items()}
    check_values(vars(cost) | {"seconds": seconds, "steps": steps}, rules | {"seconds": number, "steps": number}, str(folder / "results.json"))
    minutes, rest = divmod(round(seconds), 60)
    return [folder.name, f"{cost.trained:,} of {cost.weights:,}", size(cost.kept), f"{size(cost.peak)} ({cost.device})", f"{minutes} min {rest} s", f"{steps:,}", left(folder)]


def left(folder: Path) -> str:
    """The size of the file that matters, or nothing."""
    from finetune_diffusers.training.memory_usage import size

    for pattern in RESULTS:
        if found := sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
            return size(found[-1].stat().st_size)
    return ""


if __name__ == "__main__":
    run(main, Args)

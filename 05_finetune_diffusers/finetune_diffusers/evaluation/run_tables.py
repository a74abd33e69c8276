"""Several trainings side by side, what they reached and what they cost, read from the results.json of their run folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from common.errors import UserError, explain
from common.io.config_values import check_values
from common.io.files import read_json
from common.io.ranges import Range
from common.io.tables import print_table, write_csv
from finetune_diffusers.flags import OUT
from finetune_diffusers.training.loop.memory_usage import Cost, format_bytes

# What a program leaves for others to open: the first of these that a run folder has. The newest milestone is that of
# the package.
RESULTS = ("*.safetensors", "model/unet/*.safetensors", "controlnet/*.safetensors", "model-*.pt")
STAGES = ("before", "after")  # the first two columns of what a training measures; references follow
NUMBER = Annotated[float, Range(0, 1e15)]


class Finished(NamedTuple):
    """A training that has come to its end."""

    name: str
    cost: Cost
    seconds: float
    steps: int
    measures: Mapping[str, Mapping[str, Mapping[str, float]]]  # {stage or reference: {measure: its estimate}}
    bytes: int  # of the file that it leaves for others to open


def tabulate(runs: Sequence[Path], out: Path | None = None) -> None:
    """Print what these runs reached and cost, by default all in runs/05_finetune_diffusers, and write it to a folder."""
    runs = runs or sorted(path.parent for path in OUT.glob("*/results.json"))
    if not runs:
        raise UserError(
            f"no folder in {OUT} holds a results.json, which a training writes at its end; make one, for instance with: python 05_finetune_diffusers/lora.py"
        )
    finished = [read_run(folder) for folder in runs]
    measures = [row for each in finished for row in measure_rows(each)]
    if measures:
        print_table((shown_measures(row) for row in measures), left=2)
        print()
    print_table(shown_cost(each) for each in finished)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        print(f"\n{write_csv(out / 'costs.csv', map(cost_row, finished))}")
        if measures:
            print(write_csv(out / "measures.csv", measures))


def read_run(folder: Path) -> Finished:
    """What a training wrote at its end, checked."""
    path = folder / "results.json"
    if not path.exists():
        raise UserError(f"there is no {path}, which a training of this chapter writes at its end")
    found = read_json(path)
    try:
        cost, seconds, steps = Cost(**found["cost"]), found["seconds"], found["steps"]
    except (KeyError, TypeError) as problem:
        raise UserError(f"{path} does not say what the run cost ({explain(problem)})") from problem
    rules = {name: kind if kind is str else NUMBER for name, kind in get_type_hints(Cost).items()}
    check_values(
        vars(cost) | {"seconds": seconds, "steps": steps}, rules | {"seconds": NUMBER, "steps": NUMBER}, str(path)
    )
    measures = found.get("measures") or {}
    try:
        estimates = {
            f"{what}: {name}, {key}": estimate[key]
            for what, of_stage in measures.items()
            for name, estimate in of_stage.items()
            for key in ("value", "low", "high")
        }
    except (AttributeError, KeyError, TypeError) as problem:
        raise UserError(f"{path} does not say what the run measured ({explain(problem)})") from problem
    check_values(estimates, dict.fromkeys(estimates, Annotated[float, Range(-1e15, 1e15)]), str(path))
    return Finished(folder.name, cost, seconds, steps, measures, result_size(folder))


def measure_rows(run: Finished) -> list[dict[str, Any]]:
    """A row for each measure, with its value and interval before and after the training, and those of the references."""
    columns = dict(zip([*STAGES, *list(run.measures)[len(STAGES) :]], run.measures.values(), strict=False))
    names = dict.fromkeys(name for found in columns.values() for name in found)
    return [
        {"run": run.name, "measure": name}
        | {
            f"{column.replace(' ', '_')}{'' if key == 'value' else f'_{key}'}": found[name][key]
            for column, found in columns.items()
            if name in found
            for key in ("value", "low", "high")
        }
        for name in names
    ]


def shown_measures(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of `measure_rows` with "0.095 (0.089 to 0.102)" in each column."""
    columns = [key for key in row if f"{key}_low" in row]
    values = {key: f"{row[key]:.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})" for key in columns}
    return {"run": row["run"], "measure": row["measure"]} | values


def cost_row(run: Finished) -> dict[str, Any]:
    return {
        "run": run.name,
        "trained": run.cost.trained,
        "weights": run.cost.weights,
        "kept_mb": run.cost.kept / 1e6,
        "peak_gb": run.cost.peak / 1e9,
        "device": run.cost.device,
        "minutes": run.seconds / 60,
        "steps": run.steps,
        "file_mb": run.bytes / 1e6,
    }


def shown_cost(run: Finished) -> dict[str, str]:
    minutes, rest = divmod(round(run.seconds), 60)
    return {
        "run": run.name,
        "weights trained": f"{run.cost.trained:,} of {run.cost.weights:,}",
        "weights, gradients, optimizer, average": format_bytes(run.cost.kept),
        "peak memory": f"{format_bytes(run.cost.peak)} ({run.cost.device})",
        "time": f"{minutes} min {rest} s",
        "steps": f"{run.steps:,}",
        "file": format_bytes(run.bytes) if run.bytes else "",
    }


def result_size(folder: Path) -> int:
    """Bytes of the file that the run leaves for others to open, or 0."""
    for pattern in RESULTS:
        if found := sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
            return found[-1].stat().st_size
    return 0

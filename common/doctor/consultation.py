"""Which subjects are looked at, in which order."""

from collections.abc import Callable, Iterator
from pathlib import Path

from common.cli import free_folder
from common.doctor.finding import WRONG, Finding, print_findings, skipped
from common.doctor.machine import compute, installation, network, storage
from common.doctor.practice import FAULTS, practise
from common.doctor.runs import generalization, loss_curve, samples, training_data, weights
from common.doctor.runs.run_files import open_run
from common.errors import UserError


def consult(
    run: Path | None,
    practice: str | None,
    out: Path | None,
    data_dir: Path,
    device: str,
    say: Callable[[str], str] = str,
) -> int:
    """Print the findings of one command. Returns its exit code, 0 or 1. say: translates what is printed"""
    if run and practice:
        raise UserError("give --run or --practice, not both")
    if practice == "list":
        for name, (cause, _) in FAULTS.items():
            print(f"{name:18} {say(cause)}")
        return 0
    if practice:
        folder = out or free_folder(Path("runs") / "practice")
        if out and (out / "config.json").exists():
            raise UserError(f"{out} already holds a run; choose another --out")
        practise(practice, folder)
        print(say(f"now type: python -m common.doctor --run {folder}"))
        return 0
    return print_findings(of_a_run(run, data_dir) if run else of_the_machine(data_dir, device), say)


def of_the_machine(data_dir: Path, device: str) -> Iterator[Finding]:
    """What is quick comes first."""
    yield from installation.findings()
    yield from storage.findings(data_dir)
    yield from network.findings()
    yield from compute.findings(device)


INDEPENDENT = {"classes", "empty caption"}  # subjects that explain nothing else


def of_a_run(folder: Path, data_dir: Path) -> Iterator[Finding]:
    """From causes to effects: data, loss, weights, samples. What follows from something wrong is not looked at."""
    run = open_run(folder)
    subjects = (
        ("data", training_data.findings(run)),
        ("loss", loss_curve.findings(run)),
        ("weights", weights.findings(run)),
        ("samples", samples.findings(run)),
        ("generalization", generalization.findings(run, data_dir)),
    )
    cause = ""
    for name, findings in subjects:
        if cause and not (name == "loss" and loss_curve.not_finite(run)):
            yield skipped(name, f"it follows from the {cause}: mend that first")
            continue
        found = list(findings)
        yield from found
        if any(each.status == WRONG and each.subject not in INDEPENDENT for each in found):
            cause = cause or name

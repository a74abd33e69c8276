"""The report that `python -m common.evaluate` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.registry import auto
from common.errors import UserError
from common.evaluate.evaluator import Report, evaluate, load_real, reference_for
from common.evaluate.samples import is_model, read_samples
from common.io.files import write_json
from common.io.tables import read_csv, write_csv

NORMAL = 1.96  # standard deviations in half a 95 % interval
Row = Mapping[str, Any]


def print_report(
    source: Path,
    data: str,
    data_dir: Path,
    n: int | None,
    sampler: str,
    seed: int,
    device: str,
    json: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Evaluate the samples of a folder, an array or a model, print the numbers, and write them to the files given."""
    if not source.exists():
        raise UserError(f"there is no {source}; give a folder of PNGs, a .npy or .npz file, or a model folder")
    name, reason = auto(data_dir) if data == "auto" else (data, "")
    if reason:
        print(reason)
    test, real = load_real(name, data_dir)  # refused before any samples are drawn
    earlier = read_csv(csv) if csv and csv.exists() else []
    samples = read_samples(source, n, sampler, seed, device)
    reference = reference_for(test, samples.shape[-1])
    report = evaluate(samples, reference, real, seed)
    print(table(report, reference.name))
    if json:
        settings = {"samples": source, "data": name, "seed": seed}
        write_json(json, settings | report._asdict() | {"ratio": report.ratio})
        print(json)
    if csv:
        drawn_with = sampler if is_model(source) else ""
        settings = {"samples": source.as_posix(), "data": name, "n": report.n, "sampler": drawn_with, "seed": seed}
        print(write_csv(csv, replaced(earlier, settings | row(report), tuple(settings))))


def row(report: Report) -> dict[str, Any]:
    """The report in a row: Frechet distance and floor with their 95 % intervals, and the shares of the classes."""
    r, (low, high) = report, report.frechet_interval
    half = NORMAL * r.frechet_real_sd
    distance = {"reference": r.reference, "frechet": r.frechet, "frechet_low": low, "frechet_high": high}
    floor = {"floor": r.frechet_real, "floor_low": r.frechet_real - half, "floor_high": r.frechet_real + half}
    return distance | floor | {"ratio": r.ratio} | {f"share_{k}": share for k, share in enumerate(r.histogram)}


def replaced(rows: Sequence[Row], new: Row, keys: Sequence[str]) -> list[Row]:
    """The rows with a new one, in the place of the first that has the same values of the keys, else at the end."""
    same = [all(str(old.get(key)) == str(new[key]) for key in keys) for old in rows]
    place = same.index(True) if any(same) else len(rows)
    return [*rows[:place], new, *rows[place + 1 :]]


def table(report: Report, name: str) -> str:
    """The report as text."""
    r, (low, high) = report, report.frechet_interval
    lines = [
        f"n = {r.n} samples, compared with {r.reference:,} test images of {name}",
        "",
        f"{'':18}{'samples':>22}{f'{r.n} real images':>24}",
        f"{'Frechet distance':18}{f'{r.frechet:.2f} ± {r.frechet_sd:.2f}':>22}{f'{r.frechet_real:.2f} ± {r.frechet_real_sd:.2f}':>24}"
        f"    ratio {r.ratio:.1f}",
        f"{'  95 % interval':18}{f'{low:.2f} to {high:.2f}':>22}{'':>24}",
        f"{'KID':18}{f'{r.kid:.4f} ± {r.kid_sd:.4f}':>22}{f'{r.kid_real:.4f} ± {r.kid_real_sd:.4f}':>24}",
        f"{'confidence':18}{r.confidence:>22.3f}{r.confidence_real:>24.3f}    pure noise {r.confidence_noise:.3f}",
        "",
        "taken for         samples    real",
    ]
    for digit, (share, real) in enumerate(zip(r.histogram, r.histogram_real, strict=True)):
        lines.append(f"{digit:>9}{share:>15.1%}{real:>8.1%}  {'#' * round(100 * share)}")
    remarks = [
        "± is one standard deviation: of the samples' distances by resampling, of the floor between draws of real images",
        "the confidence of the classifier says nothing alone; see what pure noise gets",
        *r.notes,
    ]
    return "\n".join(lines + [""] + [f"note: {remark}" for remark in remarks])

"""The tables of evaluate_gif.py, printed and as CSV files, from which those of RESULTS.md are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import pick_device, writable_folder
from common.evaluate.distances import Estimate
from common.io.tables import write_csv
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from inpaint_gif.animation.camera import MOVES
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import open_dish_model
from inpaint_gif.evaluation.flags import GIFEvaluationFlags
from inpaint_gif.evaluation.metrics import (
    direction_accuracy,
    drift_metrics,
    edge_metrics,
    recognition_accuracy,
    untouched_seam,
)
from inpaint_gif.inpainting.backends import DEFAULTS, BackendConfig, open_backend
from inpaint_gif.inpainting.interface import InpaintingBackend
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.holes import hole_test_set
from inpaint_gif.training.scenes import load_test_scenes

Row = dict[str, Any]

DISH = "番茄炒蛋"  # drawn for the films of the moves


def evaluate(flags: GIFEvaluationFlags) -> None:
    """Print a table for each part, and write it to --out as soon as it is measured."""
    device = pick_device(flags.device)
    out = writable_folder(flags.out) if flags.out else None
    folder = flags.dish or DEFAULTS["repaint"]
    clip, pipeline = open_dish_model(folder, device, flags.clip, flags.backend)
    classifier = load_clip(flags.classifier, flags.backend, device) if flags.classifier else clip
    drawing = SamplingConfig(flags.guidance, sampler=flags.sampler, seed=flags.seed)
    size = flags.size or pipeline.size
    backends = open_backends(flags, folder, clip, device) if {"holes", "drift", "moves"} & set(flags.only) else {}
    reports = {
        "dishes": lambda: report_dishes(pipeline, classifier, drawing, max(1, flags.n // 10)),
        "holes": lambda: report_holes(size, backends, flags.n, flags.seed),
        "drift": lambda: report_drift(size, backends, max(1, flags.n // 4), flags.seed),
        "moves": lambda: report_moves(pipeline, backends, drawing, flags.frames),
    }
    for part, report in reports.items():
        if part in flags.only:
            rows = report()
            if out:
                print(write_csv(out / f"{part}.csv", [row | {"n": flags.n, "seed": flags.seed} for row in rows]))


def open_backends(
    flags: GIFEvaluationFlags, folder: Path, clip: ChineseCLIP, device: str
) -> dict[str, InpaintingBackend]:
    """{engine: its backend}"""
    models = {"inpaint": flags.inpaint and str(flags.inpaint), "repaint": str(folder)}
    controlnets = {"controlnet": flags.controlnet and str(flags.controlnet)}
    painting = SamplingConfig(flags.paint_guidance, sampler=flags.sampler)
    return {
        engine: open_backend(
            BackendConfig(
                engine, models.get(engine), controlnets.get(engine), painting, device, clip, blur=flags.mask_blur
            )
        )
        for engine in flags.engines
    }


def report_dishes(pipeline: TextToImagePipeline, classifier: ChineseCLIP, config: SamplingConfig, n: int) -> list[Row]:
    """Recognition of n drawings of each dish."""
    found = recognition_accuracy(pipeline, classifier, config, n)
    width = max(map(len, found))
    print(f"{'':{width}}   asked  named rightly")
    for what, f in found.items():
        print(f"{what:{width}}  {f.queries:6,}  {interval(f.top1, 100)} %")
    return [
        {"images": what, "queries": f.queries, "choices": f.choices, **f.top1.columns("top1")}
        for what, f in found.items()
    ]


def report_holes(size: int, backends: Mapping[str, InpaintingBackend], n: int, seed: int) -> list[Row]:
    """Seams and errors of every backend in n holes."""
    test = hole_test_set(HoleFlags(seed=seed), size, n)
    floor = untouched_seam(test)
    rows: list[Row] = [{"engine": "untouched", **floor.columns("seam")}]
    print(f"\n{'engine':10}  {'seam':22}  {'error in the hole':22}  seconds a hole")
    print(f"{'untouched':10}  {interval(floor)}")
    for name, backend in backends.items():
        e = edge_metrics(backend, test, seed)
        changed = "" if e.exact else "  known pixels CHANGED"
        print(f"{name:10}  {interval(e.seam):22}  {interval(e.error):22}  {e.seconds:.2f}{changed}")
        rows.append(
            {"engine": name}
            | e.seam.columns("seam")
            | e.error.columns("error")
            | {"exact": e.exact, "seconds": e.seconds}
        )
    return rows


def report_drift(size: int, backends: Mapping[str, InpaintingBackend], n: int, seed: int) -> list[Row]:
    """Statistics of keyframes that every backend paints one after another, in n scenes."""
    scenes, captions = load_test_scenes(n, size)
    rows: list[Row] = []
    for name, backend in backends.items():
        d = drift_metrics(backend, scenes, captions, seed=seed)
        if not rows:
            columns = "".join(f"{f'keyframe {k}':>13}" for k in range(1, 1 + len(d.painted)))
            print(f"\n{'engine':10}{columns}  {'drift, relative to untouched':30}  step of the colour, the same")
            print(f"{'untouched':10}{''.join(f'{value:13.3f}' for value in d.untouched)}")
            rows.append({"engine": "untouched"} | keyframe_columns(d.untouched))
        columns = "".join(f"{value:13.3f}" for value in d.painted)
        print(f"{name:10}{columns}  {interval(d.ratio):30}  {interval(d.step)}")
        rows.append(
            {"engine": name} | keyframe_columns(d.painted) | d.ratio.columns("drift") | d.step.columns("tint_step")
        )
    return rows


def keyframe_columns(values: Sequence[float]) -> Row:
    return {f"keyframe_{k}": value for k, value in enumerate(values, 1)}


def report_moves(
    pipeline: TextToImagePipeline, backends: Mapping[str, InpaintingBackend], config: SamplingConfig, frames: int
) -> list[Row]:
    """Directions in the film of every move, painted by the first backend."""
    name, backend = next(iter(backends.items()))
    picture, rows = pipeline.txt2img([DISH], config)[0], []
    print(f"\n{'move':12}  frames that go the right way ({name})    known pixels  seconds")
    for move in MOVES:
        d = direction_accuracy(picture, move, backend, DISH, frames, config.seed)
        print(
            f"{move:12}  {d.right:3} of {d.frames:3}{'':29}  {'exact' if d.exact else 'CHANGED':12}  {d.seconds:.1f}"
        )
        rows.append({"move": move, "engine": name} | d._asdict())
    return rows


def interval(value: Estimate, scale: float = 1.0) -> str:
    """ "1.12 (1.05 to 1.20)" """
    return f"{scale * value.value:.2f} ({scale * value.low:.2f} to {scale * value.high:.2f})"

"""The tables of evaluate_gif.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cli import pick_device
from common.errors import UserError
from common.evaluate.distances import Estimate
from common.io.files import write_json
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

DISH = "番茄炒蛋"  # drawn for the films of the moves


def evaluate(flags: GIFEvaluationFlags) -> None:
    """Print a table for each part, and write the figures as JSON."""
    out, device = flags.out, pick_device(flags.device)
    if out and out.suffix != ".json":
        raise UserError(f"--out must end in .json, not {out.name}")
    folder = flags.dish or DEFAULTS["repaint"]
    clip, pipeline = open_dish_model(folder, device, flags.clip, flags.backend)
    classifier = load_clip(flags.classifier, flags.backend, device) if flags.classifier else clip
    drawing = SamplingConfig(flags.guidance, sampler=flags.sampler, seed=flags.seed)
    backends = open_backends(flags, folder, clip, device) if {"holes", "drift", "moves"} & set(flags.only) else {}
    figures: dict[str, Any] = {}
    if "dishes" in flags.only:
        figures["dishes"] = report_dishes(pipeline, classifier, drawing, max(1, flags.n // 10))
    if "holes" in flags.only:
        figures["holes"] = report_holes(pipeline.size, backends, flags.n, flags.seed)
    if "drift" in flags.only:
        figures["drift"] = report_drift(pipeline.size, backends, max(1, flags.n // 4), flags.seed)
    if "moves" in flags.only:
        figures["moves"] = report_moves(pipeline, backends, drawing, flags.frames)
    if out:
        write_json(out, {"dish": str(folder), "seed": flags.seed, "n": flags.n, "device": device, **figures})
        print(out)


def open_backends(
    flags: GIFEvaluationFlags, folder: Path, clip: ChineseCLIP, device: str
) -> dict[str, InpaintingBackend]:
    """{engine: its backend}"""
    models = {"inpaint": flags.inpaint and str(flags.inpaint), "repaint": str(folder)}
    controlnets = {"controlnet": flags.controlnet and str(flags.controlnet)}
    painting = SamplingConfig(flags.paint_guidance, sampler=flags.sampler)
    return {
        engine: open_backend(
            BackendConfig(engine, models.get(engine), controlnets.get(engine), painting, device, clip)
        )
        for engine in flags.engines
    }


def report_dishes(
    pipeline: TextToImagePipeline, classifier: ChineseCLIP, config: SamplingConfig, n: int
) -> dict[str, Any]:
    """Recognition of n drawings of each dish."""
    found, result = recognition_accuracy(pipeline, classifier, config, n), {}
    width = max(map(len, found))
    print(f"{'':{width}}   asked  named rightly")
    for what, f in found.items():
        print(f"{what:{width}}  {f.queries:6,}  {interval(f.top1, 100)} %")
        result[what] = {"queries": f.queries, "choices": f.choices, "top1": f.top1._asdict()}
    return result


def report_holes(size: int, backends: Mapping[str, InpaintingBackend], n: int, seed: int) -> dict[str, Any]:
    """Seams and errors of every backend in n holes."""
    test = hole_test_set(HoleFlags(seed=seed), size, n)
    floor, result = untouched_seam(test), {}
    print(f"\n{'engine':10}  {'seam':22}  {'error in the hole':22}  seconds a hole")
    print(f"{'untouched':10}  {interval(floor)}")
    for name, backend in backends.items():
        e = edge_metrics(backend, test, seed)
        changed = "" if e.exact else "  known pixels CHANGED"
        print(f"{name:10}  {interval(e.seam):22}  {interval(e.error):22}  {e.seconds:.2f}{changed}")
        result[name] = {"seam": e.seam._asdict(), "error": e.error._asdict(), "exact": e.exact, "seconds": e.seconds}
    return {"untouched": {"seam": floor._asdict()}, **result}


def report_drift(size: int, backends: Mapping[str, InpaintingBackend], n: int, seed: int) -> dict[str, Any]:
    """Statistics of keyframes that every backend paints one after another, in n scenes."""
    scenes, captions = load_test_scenes(n, size)
    result = {}
    for name, backend in backends.items():
        d = drift_metrics(backend, scenes, captions, seed=seed)
        if not result:
            columns = "".join(f"{f'keyframe {k}':>13}" for k in range(1, 1 + len(d.painted)))
            print(f"\n{'engine':10}{columns}  {'drift, relative to untouched':30}  step of the colour, the same")
            print(f"{'untouched':10}{''.join(f'{value:13.3f}' for value in d.untouched)}")
        columns = "".join(f"{value:13.3f}" for value in d.painted)
        print(f"{name:10}{columns}  {interval(d.ratio):30}  {interval(d.step)}")
        ratios = {"ratio": d.ratio._asdict(), "step": d.step._asdict()}
        result[name] = {"painted": d.painted, "untouched": d.untouched, **ratios}
    return result


def report_moves(
    pipeline: TextToImagePipeline, backends: Mapping[str, InpaintingBackend], config: SamplingConfig, frames: int
) -> dict[str, Any]:
    """Directions in the film of every move, painted by the first backend."""
    name, backend = next(iter(backends.items()))
    picture, result = pipeline.txt2img([DISH], config)[0], {}
    print(f"\n{'move':12}  frames that go the right way ({name})    known pixels  seconds")
    for move in MOVES:
        d = direction_accuracy(picture, move, backend, DISH, frames, config.seed)
        print(
            f"{move:12}  {d.right:3} of {d.frames:3}{'':29}  {'exact' if d.exact else 'CHANGED':12}  {d.seconds:.1f}"
        )
        result[move] = d._asdict()
    return result


def interval(value: Estimate, scale: float = 1.0) -> str:
    """ "1.12 (1.05 to 1.20)" """
    return f"{scale * value.value:.2f} ({scale * value.low:.2f} to {scale * value.high:.2f})"

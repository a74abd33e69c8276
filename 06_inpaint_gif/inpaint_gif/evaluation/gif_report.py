"""The tables of evaluate_gif.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluate.distances import Estimate
from common.io.files import write_json
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from inpaint_gif.animation.camera import MOVES
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import check_draws, load_clip_for, open_model
from inpaint_gif.evaluation.metrics import direction_accuracy, edge_metrics, recognition_accuracy, untouched_seam
from inpaint_gif.inpainting.backends import DEFAULTS, BackendConfig, open_backend
from inpaint_gif.inpainting.interface import InpaintingBackend
from inpaint_gif.training.flags import HoleFlags
from inpaint_gif.training.holes import hole_test_set

DISH = "番茄炒蛋"  # drawn for the films of the moves


@dataclass(frozen=True)
class GIFEvaluation:
    """What is evaluated.

    parts        some of dishes, holes, moves
    model        the model that draws, a run of train_text2dish.py; None is the shipped one
    clip         what load_clip opens as its text encoder; None is the CLIP that it was trained with
    classifier   what load_clip opens to classify drawn dishes; None is the same CLIP
    clip_backend library that computes the CLIP embeddings
    engines      engines for the holes; the first one also paints the moves
    inpaint      network of the engine inpaint, controlnet the ControlNet; None are the shipped ones
    drawing, painting   sampling of dishes and of holes
    n            holes for each engine; a tenth of it pictures of each dish
    frames       frames of the film of each move
    """

    parts: tuple[str, ...]
    model: Path | None
    clip: str | None
    classifier: str | None
    clip_backend: str
    engines: tuple[str, ...]
    inpaint: Path | None
    controlnet: Path | None
    drawing: SamplingConfig
    painting: SamplingConfig
    n: int
    frames: int
    seed: int
    device: str


def evaluate(cfg: GIFEvaluation, out: Path | None) -> None:
    """Print a table for each part, and write the figures as JSON."""
    if out and out.suffix != ".json":
        raise UserError(f"--out must end in .json, not {out.name}")
    folder = cfg.model or DEFAULTS["repaint"]
    if not folder.exists():
        raise UserError(
            f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --dish"
        )
    clip = load_clip_for(folder, cfg.device, cfg.clip, cfg.clip_backend)
    pipeline = open_model(folder, cfg.device, clip)
    classifier = load_clip(cfg.classifier, cfg.clip_backend, cfg.device) if cfg.classifier else clip
    check_draws(folder, pipeline)
    backends = open_backends(cfg, folder, clip) if {"holes", "moves"} & set(cfg.parts) else {}
    figures: dict[str, Any] = {}
    if "dishes" in cfg.parts:
        figures["dishes"] = report_dishes(cfg, pipeline, classifier)
    if "holes" in cfg.parts:
        figures["holes"] = report_holes(cfg, pipeline.size, backends)
    if "moves" in cfg.parts:
        figures["moves"] = report_moves(cfg, pipeline, backends)
    if out:
        write_json(out, {"dish": str(folder), "seed": cfg.seed, "n": cfg.n, "device": cfg.device, **figures})
        print(out)


def open_backends(cfg: GIFEvaluation, folder: Path, clip: ChineseCLIP) -> dict[str, InpaintingBackend]:
    """{engine: its backend}"""
    models = {"inpaint": cfg.inpaint and str(cfg.inpaint), "repaint": str(folder)}
    controlnets = {"controlnet": cfg.controlnet and str(cfg.controlnet)}
    return {
        engine: open_backend(
            BackendConfig(engine, models.get(engine), controlnets.get(engine), cfg.painting, cfg.device, clip)
        )
        for engine in cfg.engines
    }


def report_dishes(cfg: GIFEvaluation, pipeline: TextToImagePipeline, classifier: ChineseCLIP) -> dict[str, Any]:
    found, result = recognition_accuracy(pipeline, classifier, cfg.drawing, max(1, cfg.n // 10)), {}
    width = max(map(len, found))
    print(f"{'':{width}}   asked  named rightly")
    for what, f in found.items():
        print(f"{what:{width}}  {f.queries:6,}  {interval(f.top1, 100)} %")
        result[what] = {"queries": f.queries, "choices": f.choices, "top1": f.top1._asdict()}
    return result


def report_holes(cfg: GIFEvaluation, size: int, backends: Mapping[str, InpaintingBackend]) -> dict[str, Any]:
    test = hole_test_set(HoleFlags(seed=cfg.seed), size, cfg.n)
    floor, result = untouched_seam(test), {}
    print(f"\n{'engine':10}  {'seam':22}  {'error in the hole':22}  known pixels  seconds a hole")
    print(f"{'untouched':10}  {interval(floor)}")
    for name, backend in backends.items():
        e = edge_metrics(backend, test, cfg.seed)
        known = "exact" if e.exact else "CHANGED"
        print(f"{name:10}  {interval(e.seam):22}  {interval(e.error):22}  {known:12}  {e.seconds:.2f}")
        result[name] = {"seam": e.seam._asdict(), "error": e.error._asdict(), "exact": e.exact, "seconds": e.seconds}
    return {"untouched": {"seam": floor._asdict()}, **result}


def report_moves(
    cfg: GIFEvaluation, pipeline: TextToImagePipeline, backends: Mapping[str, InpaintingBackend]
) -> dict[str, Any]:
    name, backend = next(iter(backends.items()))
    picture, result = pipeline.txt2img([DISH], cfg.drawing)[0], {}
    print(f"\n{'move':12}  frames that go the right way ({name})    known pixels  seconds")
    for move in MOVES:
        d = direction_accuracy(picture, move, backend, DISH, cfg.frames, cfg.seed)
        print(
            f"{move:12}  {d.right:3} of {d.frames:3}{'':29}  {'exact' if d.exact else 'CHANGED':12}  {d.seconds:.1f}"
        )
        result[move] = d._asdict()
    return result


def interval(value: Estimate, scale: float = 1.0) -> str:
    """ "1.12 (1.05 to 1.20)" """
    return f"{scale * value.value:.2f} ({scale * value.low:.2f} to {scale * value.high:.2f})"

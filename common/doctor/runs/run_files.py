"""The files of a run folder, read once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError, explain
from common.io.files import read_json
from common.io.tables import read_csv
from common.training.checkpoint import checkpoints, load_checkpoint

SHORT = 50  # steps; a shorter run cannot be judged by its loss


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    settings: dict[str, Any]  # config.json
    rows: list[dict[str, str]]  # metrics.csv

    def optional(self, name: str) -> dict[str, Any]:
        """A JSON file that some runs have; {} where there is none."""
        path = self.folder / name
        return read_json(path) if path.exists() else {}

    def column(self, name: str) -> np.ndarray:
        """A column of metrics.csv, (steps,) float64; NaN where a cell is empty. UserError for a cell that is no number."""
        try:
            return np.array([float(row.get(name) or "nan") for row in self.rows])
        except ValueError as problem:
            raise UserError(
                f"{self.folder / 'metrics.csv'} holds a cell that is no number ({explain(problem)})"
            ) from problem

    @cached_property
    def checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint of common/training/loop.py; None where there is none."""
        kept = checkpoints(self.folder)
        return load_checkpoint(kept[-1]) if kept else None

    @cached_property
    def fresh(self) -> bool:
        """Whether the training began with untrained weights."""
        return not any(self.settings.get(name) for name in ("start", "model", "resume"))

    @cached_property
    def samples(self) -> Tensor | None:
        """The newest sample picture cut into images, (N, 3, S, S) in [-1, 1]; None where there is none."""
        side = image_side(self.folder / "model")
        drawn = sorted((self.folder / "samples").glob("step-*.png")) if (self.folder / "samples").is_dir() else []
        last = self.folder / "samples.png"
        paths = [last] if last.exists() else drawn[-1:]
        return cut(paths[0], side) if paths and side else None


def open_run(folder: Path) -> Run:
    """The run in a folder. UserError where there is none."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; give the folder of a training run, such as runs/01_ddpm_mnist/mnist"
        )
    metrics, stopped = folder / "metrics.csv", folder / "diverged.json"
    if not metrics.exists() and not stopped.exists():
        raise UserError(f"{folder} holds no run: metrics.csv is missing; give the folder that --out named")
    config = folder / "config.json"
    return Run(folder, read_json(config) if config.exists() else {}, read_csv(metrics) if metrics.exists() else [])


def image_side(model: Path) -> int | None:
    """Pixels a side of the images of a model's folder; None where its configuration does not say."""
    for part in ("unet", "transformer"):
        if (model / part / "config.json").exists():
            size = read_json(model / part / "config.json").get("sample_size")
            blocks = (model / "vae" / "config.json").exists() and read_json(model / "vae" / "config.json").get(
                "block_out_channels"
            )
            factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 1
            return size * factor if isinstance(size, int) else None
    return None


def cut(path: Path, side: int, gap: int = 2) -> Tensor | None:
    """The images of a picture that viz.grid drew: it puts `gap` white pixels around each, and enlarges all by a whole
    factor. None for another kind of picture.
    """
    try:
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)  # (3, H, W)
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({explain(problem)})") from problem
    _, height, width = pixels.shape
    step = side + gap
    for factor in range(min(height, width) // (side + 2 * gap), 0, -1):
        small = pixels[:, ::factor, ::factor]
        lines = [torch.arange(length) % step < gap for length in small.shape[1:]]  # where white lines must be
        whole = all(length % factor == 0 and (length // factor - gap) % step == 0 for length in (height, width))
        if whole and (small[:, lines[0]] == 255).all() and (small[:, :, lines[1]] == 255).all():
            parts = small[:, ~lines[0]][:, :, ~lines[1]].unfold(1, side, side).unfold(2, side, side)  # (3, y, x, S, S)
            kept = parts.permute(1, 2, 0, 3, 4).flatten(0, 1).float() / 127.5 - 1
            filled = kept.flatten(1).min(1).values < 1  # the grid's empty places are white
            return kept[filled] if filled.any() else None
    return None

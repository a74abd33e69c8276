"""What sample.py does: it opens a model of pixels and draws a sheet of samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.cli import pick_device
from common.diffusion.denoiser import CLIP_MODES
from common.evaluate.sample_sheet import parse_scales, sample_sheet
from common.models.pipeline import SamplingConfig
from common.models.text_to_image_folder import open_pixel_pipeline

ROW_HEIGHT = 100  # pixels


def draw_samples(
    model: Path,
    prompts: Sequence[str],
    n: int,
    sweep: str | None,
    config: SamplingConfig,
    clip: str,
    out: Path,
    gif: bool,
    device: str,
) -> None:
    """Draw n images of each prompt at each guidance scale of the sweep, by default at that of the config.
    clip: one of CLIP_MODES
    """
    scales = parse_scales(sweep) if sweep else (config.guidance_scale,)
    pipeline = open_pixel_pipeline(model, pick_device(device))
    sample_sheet(pipeline, prompts, n, scales, replace(config, clip_x0=CLIP_MODES[clip]), out, ROW_HEIGHT, gif)

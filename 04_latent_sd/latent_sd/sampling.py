"""What sample.py does: it opens a latent model and draws a sheet of samples, from noise or from an image."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from common.cli import pick_device
from common.data.sources.decoding import decode_all
from common.errors import UserError
from common.evaluate.sample_sheet import parse_scales, sample_sheet
from common.io.pixels import to_float
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text_to_image_folder import open_latent_pipeline

ROW_HEIGHT = 130  # pixels


def draw_samples(
    model: Path,
    prompts: Sequence[str],
    n: int,
    sweep: str | None,
    config: SamplingConfig,
    image: Path | None,
    strength: float,
    out: Path,
    gif: bool,
    device: str,
) -> None:
    """Draw n images of each prompt at each guidance scale of the sweep, by default at that of the config."""
    scales = parse_scales(sweep) if sweep else (config.guidance_scale,)
    pipeline = open_latent_pipeline(model, pick_device(device))
    start = read_image(image, pipeline, config.size) if image else None
    sample_sheet(pipeline, prompts, n, scales, config, out, ROW_HEIGHT, gif, start, strength)


def read_image(path: Path, pipeline: TextToImagePipeline, size: int | None) -> Tensor:
    """The picture as the model expects it: a square from its middle. (1, C, S, S) in [-1, 1]"""
    if not path.is_file():
        raise UserError(f"there is no image file {path}")
    side = pipeline.latent_side(size) * pipeline.factor
    return to_float(decode_all([path], side, channels=pipeline.image_channels)[0])

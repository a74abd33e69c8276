"""What sample.py does: it opens a latent model and draws a sheet of samples, from noise or from an image."""

from pathlib import Path

from torch import Tensor

from common.cli import pick_device
from common.data.sources.decoding import decode_all
from common.errors import UserError
from common.evaluate.sample_sheet import parse_scales, sample_sheet
from common.io.pixels import to_float
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text_to_image_folder import open_latent_pipeline
from latent_sd.flags import LatentSampleFlags

ROW_HEIGHT = 130  # pixels


def draw_samples(flags: LatentSampleFlags) -> None:
    """Draw n images of each prompt at each guidance scale of --sweep, by default at --guidance."""
    strength = 0.6 if flags.strength is None else flags.strength
    config = SamplingConfig(
        flags.guidance, flags.negative, flags.sampler, flags.rescale, flags.interval, size=flags.size, seed=flags.seed
    )
    pipeline = open_latent_pipeline(flags.model, pick_device(flags.device))
    start = read_image(flags.image, pipeline, flags.size) if flags.image else None
    scales = parse_scales(flags.sweep) if flags.sweep else (flags.guidance,)
    sample_sheet(pipeline, flags.prompts, flags.n, scales, config, flags.out, ROW_HEIGHT, flags.gif, start, strength)


def read_image(path: Path, pipeline: TextToImagePipeline, size: int | None) -> Tensor:
    """The picture as the model expects it: a square from its middle. (1, C, S, S) in [-1, 1]"""
    if not path.is_file():
        raise UserError(f"there is no image file {path}")
    side = pipeline.latent_side(size) * pipeline.factor
    return to_float(decode_all([path], side, channels=pipeline.image_channels)[0])

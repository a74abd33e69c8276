"""What sample.py does: it opens a model of pixels and draws a sheet of samples."""

from cfg_pokemon.flags import PixelSampleFlags
from common.cli import pick_device
from common.diffusion.denoiser import CLIP_MODES
from common.evaluate.sample_sheet import parse_scales, sample_sheet
from common.models.pipeline import SamplingConfig
from common.models.text_to_image_folder import open_pixel_pipeline

ROW_HEIGHT = 100  # pixels


def draw_samples(flags: PixelSampleFlags) -> None:
    """Draw n images of each prompt at each guidance scale of --sweep, by default at --guidance."""
    scales = parse_scales(flags.sweep) if flags.sweep else (flags.guidance,)
    config = SamplingConfig(
        flags.guidance,
        flags.negative,
        flags.sampler,
        flags.rescale,
        flags.interval,
        CLIP_MODES[flags.clip],
        seed=flags.seed,
    )
    pipeline = open_pixel_pipeline(flags.model, pick_device(flags.device))
    sample_sheet(pipeline, flags.prompts, flags.n, scales, config, flags.out, ROW_HEIGHT, flags.gif)

"""What caption_sensitivity.py does: the loss of a model with right, empty and wrong captions,
in bands of noise levels.
"""

from pathlib import Path

import torch

from common.cli import pick_device
from common.data import Images, load
from common.data.creatures.dataset import load_creatures
from common.diffusion.losses import diffusion_loss
from common.io.pixels import to_float
from common.io.progress import with_progress
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_pixel_pipeline

BANDS = ((0.0, 0.35), (0.35, 0.65), (0.65, 0.95), (0.95, 1.0))  # of the noise level u; 1 is pure noise
BATCH_SIZE = 100


def caption_losses(pipeline: TextToImagePipeline, images: Images, seed: int = 0) -> dict[str, list[float]]:
    """The mean loss in each of BANDS with the right caption, with none ("nothing"),
    and with that of the next image ("wrong").
    """
    encoder, captions, n = pipeline.text_encoder, list(images.need_captions()), len(images)
    texts = {"right": captions, "nothing": [""] * n, "wrong": captions[1:] + captions[:1]}
    found: dict[str, list[float]] = {name: [] for name in texts}
    for low, high in BANDS:
        u = low + (high - low) * (torch.arange(n) + 0.5) / n
        eps = torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(seed))
        for name, some in texts.items():
            total = 0.0
            batches = [slice(first, first + BATCH_SIZE) for first in range(0, n, BATCH_SIZE)]
            for batch in with_progress(f"captions: {name}", batches, unit="batch"):
                x0, noise = to_float(images.pixels[batch]).to(pipeline.device), eps[batch].to(pipeline.device)
                with torch.no_grad():
                    embeddings = encoder(some[batch])  # (B, M, D)
                    per_sample = diffusion_loss(
                        pipeline.unet, pipeline.schedule, pipeline.prediction, x0, u[batch], noise, text=embeddings
                    )
                total += float(per_sample.sum())
            found[name].append(total / n)
    return found


def report(model: Path, data: str, data_dir: Path, language: str | None, n: int, seed: int, device: str) -> None:
    """Print a line for each band. Of the creatures, those of the test split are used."""
    pipeline = open_pixel_pipeline(model, pick_device(device))
    if data == "creatures":
        images = load_creatures("test", n, pipeline.size, language=language or "both")
    else:
        wanted = {"language": language, "n": n, "channels": pipeline.image_channels, "captions": True}
        images = load(data, pipeline.size, data_dir, **wanted)
    images.need_captions(language)
    found = caption_losses(pipeline, images, seed)
    columns = "".join(f"{name:>10}" for name in found)
    print(f"{model}: loss on {len(images)} pictures of {data}\n\n{'noise level u':16}{columns}{'wrong - right':>16}")
    for k, (low, high) in enumerate(BANDS):
        columns = "".join(f"{values[k]:>10.4f}" for values in found.values())
        print(f"{low:.2f} to {high:.2f}{'':4}{columns}{found['wrong'][k] - found['right'][k]:>16.4f}")

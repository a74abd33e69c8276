"""What the network was given: batch.json, which the training loop writes at its first step."""

import math
from collections.abc import Iterator
from typing import Any

from common.doctor.finding import Finding, fine, skipped, wrong
from common.doctor.runs.run_files import Run

BEYOND = 1.01  # pixels in [-1, 1] may exceed it by rounding
INNER = 0.6  # a batch of images whose largest distance from grey is smaller uses about half of the range
LATENT_STD = (0.5, 2.0)  # of a batch; over the whole set it should be 1


def findings(run: Run) -> Iterator[Finding]:
    """Range of the images, scale of the latents, and whether the empty caption was trained."""
    seen = run.optional("batch.json")
    if not seen:
        yield skipped("data range", "there is no batch.json, which newer runs have")
    if "image" in seen:
        yield pixels(seen["image"])
    if "latent" in seen:
        yield latents(seen["latent"], seen.get("std"))
    dropout, guidance = run.settings.get("caption_dropout"), run.settings.get("guidance")
    if dropout == 0 and isinstance(guidance, float) and guidance != 1:
        yield wrong(
            "empty caption",
            f"it was never trained (caption_dropout is 0), and guidance {guidance:g} extrapolates from it",
            "train with --caption-dropout 0.1, or sample with --guidance 1",
        )


def pixels(image: dict[str, Any]) -> Finding:
    """Images in [-1, 1]."""
    low, high = image["min"], image["max"]
    if not math.isfinite(low + high):
        return wrong(
            "data range", "the first batch holds NaN or infinity", "find the broken images, and leave them out"
        )
    shown, cure = f"{low:.3g} to {high:.3g}", "scale images to [-1, 1]: x = 2 * image - 1, or pixels / 127.5 - 1"
    if low < -BEYOND or high > BEYOND:
        return wrong("data range", f"{shown}, beyond [-1, 1]", cure)
    if low >= 0 or high <= 0:
        return wrong("data range", f"{shown}: no pixel is {'darker' if low >= 0 else 'brighter'} than mid-grey", cure)
    if max(-low, high) < INNER:
        return wrong("data range", f"{shown}, half of [-1, 1]", cure)
    return fine("data range", shown)


def latents(mean: dict[str, Any], std: dict[str, Any] | None) -> Finding:
    """Latents of unit variance. std: the posterior's standard deviation, whose variance adds to that of its mean."""
    noise = std["mean"] ** 2 + std["std"] ** 2 if std else 0.0
    whole = (mean["std"] ** 2 + noise) ** 0.5
    low, high = LATENT_STD
    if low <= whole <= high:
        return fine("latents", f"standard deviation {whole:.2f}")
    return wrong(
        "latents",
        f"standard deviation {whole:.2f} instead of 1, so the noise schedule does not fit them",
        f"multiply by {1 / whole:.4g} (the autoencoder's scaling_factor), once"
        if whole
        else "the encoder gives a constant",
    )

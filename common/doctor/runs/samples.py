"""The newest sample picture of a run, compared with the colours of the training images (data.json)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.doctor.finding import Finding, fine, skipped, wrong
from common.doctor.runs.run_files import SHORT, Run

DARK = 0.2  # difference of mean brightness, in units of [-1, 1], whose width is 2
TINT = 0.15  # difference of one channel from what all three have in common
NOISE = 0.1  # correlation of neighbouring pixels: 0 for noise, 0.35 for 8x8 digits, 0.8 for 28x28
ALIKE = 0.05  # mean standard deviation of a pixel over the samples: 0.3 to 0.4 for digits
COLOURS = ("red", "green", "blue")


def findings(run: Run) -> Iterator[Finding]:
    """Samples that are noise, all alike, dark or bright, tinted."""
    x = run.samples  # (N, 3, S, S)
    if x is None or len(x) < 4:
        yield skipped("samples", "there is no samples.png of at least four images that the course has drawn")
        return
    if len(run.rows) < SHORT:
        yield skipped("samples", f"{len(run.rows)} steps are too few for samples")
        return
    smoothness, spread = neighbour_correlation(x), float(x.std(0, correction=0).mean())
    if spread < ALIKE:
        yield wrong(
            "samples",
            f"all are alike (a pixel's standard deviation over them is {spread:.3f})",
            "give every sample noise of its own; if it has, look for a data set with one image, or a diverged training",
        )
        return
    if smoothness < NOISE:
        yield wrong(
            "samples",
            f"look like noise (neighbouring pixels correlate by {smoothness:.2f}), although the loss has fallen",
            "sample with the prediction, schedule and scaling factor of the training (model/scheduler)",
        )
        return
    yield from colours(x, run.optional("data.json").get("colours"))


def colours(x: Tensor, real: Sequence[float] | None) -> Iterator[Finding]:
    """Brightness and tint. real: mean of each channel of the training images, 1 or 3 of them, in [-1, 1]"""
    if not real or len(real) not in (1, 3):
        yield skipped("colours", "data.json holds no colours of the training images")
        return
    apart = x.mean((0, 2, 3)).cpu().double() - torch.tensor(real, dtype=torch.float64).expand(3)  # (3,)
    whole = float(apart.mean())
    tint = apart - apart.mean()
    most = int(tint.abs().argmax())
    if abs(float(tint[most])) > TINT:
        yield wrong(
            "colours",
            f"tinted: {COLOURS[most]} differs from the training images by {float(apart[most]):+.2f}, the others by "
            + " and ".join(f"{float(apart[k]):+.2f}" for k in range(3) if k != most),
            "check the order of the channels (RGB or BGR), the normalisation of each, and the autoencoder",
        )
    elif abs(whole) > DARK:
        yield wrong(
            "colours",
            f"samples are {'darker' if whole < 0 else 'brighter'} than the training images by {abs(whole):.2f} of 2",
            "check how images reach the network (range, augmentation), a smaller --guidance, and a schedule that ends in pure noise",
        )
    else:
        yield fine("colours", f"mean brightness differs from the training images by {whole:+.2f}")


def neighbour_correlation(x: Tensor) -> float:
    """Correlation of horizontally neighbouring pixels, each image around its own mean. (N, C, S, S)"""
    centred = x - x.mean((2, 3), keepdim=True)
    left, right = centred[..., :-1], centred[..., 1:]
    size = float((left.square().sum() * right.square().sum()).sqrt())
    return float((left * right).sum()) / size if size else 1.0

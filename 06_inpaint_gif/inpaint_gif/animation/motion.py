"""Motion between two frames, measured in the pictures themselves by phase correlation (Kuglin & Hines 1975).

A shift of a picture is a phase ramp in its Fourier transform. The normalized cross-power spectrum of two frames keeps
the phase alone; its inverse transform has a peak, and the position of the peak is the shift of the content.
"""

import numpy as np
from skimage.registration import phase_cross_correlation
from torch import Tensor

CUTOFF = 0.15  # of the low-pass filter, in cycles per pixel; without it the error is ten times as large, 0.12 pixels instead of 0.01
MARGIN = 6  # pixels at the border that no block touches


def phase_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shift (dx, dy) in pixels, to about a fiftieth, by which the content of a has moved in b. a, b (H, W)"""
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    spectrum_a, spectrum_b = (np.fft.fft2((x - x.mean()) * window) for x in (a, b))
    cross = spectrum_b * spectrum_a.conj()
    fy, fx = np.fft.fftfreq(a.shape[0])[:, None], np.fft.fftfreq(a.shape[1])
    phase = cross / (np.abs(cross) + 1e-9) * np.exp(-(fy**2 + fx**2) / CUTOFF**2)
    shift, _, _ = phase_cross_correlation(
        phase, np.ones_like(phase), space="fourier", normalization=None, upsample_factor=50
    )
    return shift[::-1]


def motion(a: Tensor, b: Tensor) -> tuple[np.ndarray, float]:
    """(shift of the whole in pixels, growth about the centre),
    fitted to the phase correlations of nine blocks. a, b (C, H, W), H = W

    A first estimate from the whole picture places the blocks of b where the content has moved to: blocks at fixed
    positions would underestimate the motion.
    """
    a, b = a.mean(0).numpy(), b.mean(0).numpy()
    size, half = a.shape[0], a.shape[0] // 2 - 4
    coarse = np.clip(np.rint(phase_correlation(a, b)), -MARGIN, MARGIN).astype(int)
    corners = [MARGIN + round(k * (size - 2 * MARGIN - half) / 2) for k in range(3)]
    centres, shifts = [], []
    for top in corners:
        for left in corners:
            moved = b[top + coarse[1] :, left + coarse[0] :][:half, :half]
            centres.append([left + half / 2 - size / 2, top + half / 2 - size / 2])
            shifts.append(coarse + phase_correlation(a[top : top + half, left : left + half], moved))
    centres, shifts = np.array(centres), np.array(shifts)
    return np.median(shifts, axis=0), float((centres * (shifts - shifts.mean(0))).sum() / (centres**2).sum())

"""How a picture has moved, measured in the picture itself: phase correlation (Kuglin & Hines 1975).

A shift of the picture is a phase ramp in its Fourier transform. Divide the spectra of two frames by each other, keep the phase
alone, and transform back: what remains is a peak, and where it stands is by how much the content has moved.
"""

import numpy as np
from torch import Tensor

FINE = 0.15    # cycles a pixel; finer detail counts less, for it tells least
MARGIN = 6     # pixels at the border that no block touches


def phase_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By how many pixels (dx, dy) the content of a has moved in b, to about a fiftieth. a, b (H, W)"""
    window = np.hanning(a.shape[0])[:, None] * np.hanning(a.shape[1])
    cross = np.fft.fft2((b - b.mean()) * window) * np.conj(np.fft.fft2((a - a.mean()) * window))
    fy, fx = np.fft.fftfreq(a.shape[0]), np.fft.fftfreq(a.shape[1])
    cross = cross / (np.abs(cross) + 1e-9) * np.exp(-(fy[:, None] ** 2 + fx**2) / FINE**2)
    peak = np.unravel_index(np.argmax(np.fft.ifft2(cross).real), a.shape)
    y, x = (p - n if p > n / 2 else p for p, n in zip(peak, a.shape, strict=True))
    fine = np.arange(-1, 1.001, 0.02)
    surface = (np.exp(2j * np.pi * np.outer(y + fine, fy)) @ cross @ np.exp(2j * np.pi * np.outer(fx, x + fine))).real
    j, i = np.unravel_index(np.argmax(surface), surface.shape)
    return np.array([x + fine[i], y + fine[j]])


def motion(a: Tensor, b: Tensor) -> tuple[np.ndarray, float]:
    """(shift of the whole, growth about the centre): fitted to the phase correlations of nine blocks. a, b (C, H, W), H = W

    They are taken where the content has gone to, as a first look at the whole tells: a fixed frame around content that moves
    would make it seem to move less.
    """
    a, b = a.mean(0).numpy(), b.mean(0).numpy()
    size, half = a.shape[0], a.shape[0] // 2 - 4
    gone = np.clip(np.rint(phase_correlation(a, b)), -MARGIN, MARGIN).astype(int)
    corners = [MARGIN + round(k * (size - 2 * MARGIN - half) / 2) for k in range(3)]
    places, shifts = [], []
    for top in corners:
        for left in corners:
            there = b[top + gone[1] :, left + gone[0] :][:half, :half]
            places.append([left + half / 2 - size / 2, top + half / 2 - size / 2])
            shifts.append(gone + phase_correlation(a[top : top + half, left : left + half], there))
    places, shifts = np.array(places), np.array(shifts)
    return np.median(shifts, axis=0), float((places * (shifts - shifts.mean(0))).sum() / (places**2).sum())

"""Film files: GIF, WebP, PNG, MP4, their palettes and sizes, and the contact sheet."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from common.errors import UserError
from helpers.chapter_06 import film_of, texture
from inpaint_gif.animation import writers


@pytest.fixture(scope="module")
def frames():
    soft = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 1.5, 1.5))) * 1.5
    return film_of("right,zoom-out", 8, "pingpong", picture=soft.clamp(-1, 1))[0]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("fps", [8, 24])
def test_film_has_frames_speed_and_size(frames, tmp_path, suffix, fps):
    written = writers.write_film(frames, tmp_path / f"film{suffix}", fps=fps)
    picture, durations = Image.open(written.path), []
    for k in range(picture.n_frames):
        picture.seek(k)
        picture.load()
        durations.append(picture.info["duration"])
        error = np.abs(np.asarray(picture.convert("RGB"), float) - writers.to_pixels(frames)[k]).mean()
        assert error < {".gif": 10, ".webp": 8, ".png": 0.01}[suffix]
    assert (picture.n_frames, picture.size, picture.info["loop"]) == (8, (64, 64), 0)
    assert sum(durations) == pytest.approx(8000 / fps, abs=6)
    assert (written.frames, written.width, written.height, written.note) == (8, 64, 64, "")
    assert written.bytes == written.path.stat().st_size and [p.name for p in tmp_path.iterdir()] == [f"film{suffix}"]


def test_mp4(frames, tmp_path):
    import imageio.v3 as iio

    odd = [frame[:, :63, :61] for frame in frames]  # H.264 has even sizes only
    written = writers.write_film(odd, tmp_path / "writers.mp4", fps=24)
    pixels, facts = iio.imread(written.path, plugin="FFMPEG"), iio.immeta(written.path, plugin="FFMPEG")
    assert pixels.shape == (8, 64, 62, 3) and facts["fps"] == 24 and facts["codec"] == "h264"
    assert np.abs(pixels[:, :63, :61].astype(float) - writers.to_pixels(odd)).mean() < 12


def test_mp4_without_its_package(frames, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        writers.write_film(frames, tmp_path / "writers.mp4")


def test_film_that_plays_once(frames, tmp_path):
    for suffix in (".gif", ".webp", ".png"):
        assert (
            Image.open(writers.write_film(frames, tmp_path / f"film{suffix}", loop=False).path).info.get("loop", 1)
            == 1
        )


def local_palettes(data: bytes) -> int:
    """How many frames of a GIF bring a palette of their own."""
    at, found = 13 + (3 << (data[10] & 7) + 1) * (data[10] >> 7), 0
    while data[at] != 0x3B:
        if data[at] == 0x21:
            at += 2
        else:
            flags = data[at + 9]
            found += flags >> 7
            at += 11 + (3 << (flags & 7) + 1) * (flags >> 7)
        while data[at]:
            at += data[at] + 1
        at += 1
    return found


def test_gif_palettes_and_dithers(frames, tmp_path):
    errors, sizes = {}, {}
    for palette in writers.PALETTES:
        for dither in writers.DITHERS:
            written = writers.write_film(
                frames, tmp_path / f"{palette}-{dither}.gif", colours=32, palette=palette, dither=dither
            )
            assert local_palettes(written.path.read_bytes()) == (0 if palette == "global" else 7)
            picture, pixels = Image.open(written.path), writers.to_pixels(frames)
            shown = []
            for k in range(8):
                picture.seek(k)
                shown.append(np.asarray(picture.convert("RGB"), float))
            # what the eye sees
            blurred = [gaussian_filter(np.stack(x).astype(float), (0, 2, 2, 0)) for x in (shown, pixels)]
            errors[palette, dither] = np.abs(blurred[0] - blurred[1]).mean()
            sizes[palette, dither] = written.bytes
    for palette in writers.PALETTES:
        assert errors[palette, "floyd"] < errors[palette, "ordered"] < errors[palette, "none"]
        assert sizes[palette, "none"] < sizes[palette, "ordered"] < 1.1 * sizes[palette, "floyd"]
    assert sizes["global", "none"] < sizes["frame", "none"]


def test_film_below_a_size(frames, tmp_path):
    whole = writers.write_film(frames, tmp_path / "whole.gif")
    fewer = writers.write_film(frames, tmp_path / "fewer.gif", max_bytes=int(whole.bytes * 0.7))
    assert fewer.bytes <= whole.bytes * 0.7 and fewer.width == 64 and "instead of 256 colours" in fewer.note
    small = writers.write_film(frames, tmp_path / "small.gif", max_bytes=int(whole.bytes * 0.2))
    assert small.bytes <= whole.bytes * 0.2 and small.width < 64 and "of its size" in str(small) and small.frames == 8
    webp = writers.write_film(frames, tmp_path / "small.webp", max_bytes=9000)
    assert webp.bytes <= 9000 and "quality" in webp.note
    with pytest.raises(UserError, match="do not fit into 500 bytes"):
        writers.write_film(frames, tmp_path / "none.png", max_bytes=500)
    assert not (tmp_path / "none.png").exists()


def test_contact_sheet():
    keyframes = film_of("right:2,down-right:1")[2]
    sheet = writers.contact_sheet(texture(), keyframes, height=64, columns=3)
    assert sheet.size == (6 + 3 * 70, 6 + 16 + 70 + 2 * (16 + 3 * 70 + 6))  # five things in two rows
    # the mask: white is repaint, at the right
    assert sheet.getpixel((6 + 60, 22 + 70 + 22 + 70 + 30)) == (255, 255, 255)
    assert sheet.getpixel((6 + 20, 22 + 70 + 22 + 70 + 30)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("writers.avi", {}, "end it in .gif"),
        ("writers.gif", {"fps": 60}, "50 frames a second"),
        ("writers.gif", {"colours": 500}, "4 to 256"),
        ("writers.gif", {"palette": "nice"}, "one of global, frame"),
    ],
)
def test_films_that_cannot_be(frames, tmp_path, name, options, message):
    with pytest.raises(UserError, match=message):
        writers.write_film(frames, tmp_path / name, **options)
    with pytest.raises(UserError, match="at least 2 frames"):
        writers.write_film(frames[:1], tmp_path / "writers.gif")


def test_memory_is_known_beforehand():
    assert writers.check_memory(24, 128, 128, keyframes=4) < 16 * 2**20

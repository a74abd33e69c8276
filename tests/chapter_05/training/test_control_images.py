"""What a ControlNet is given: Canny edges as published ControlNets have them, a drawing's lines, a column of pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from skimage.measure import label

from common.data import load
from common.errors import UserError
from common.io.pixels import to_float
from finetune_diffusers.data import control_images
from finetune_diffusers.data.edges import edges
from finetune_diffusers.training import controlnet
from helpers.finetune_programs import CONTROLNET, TINY, refused
from helpers.programs import run_main

SIDE = 32


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def sketch() -> torch.Tensor:
    """A ring drawn with a pen five pixels wide, dark on light. (1, 3, 64, 64) uint8"""
    picture = Image.new("RGB", (64, 64), (250, 245, 230))
    ImageDraw.Draw(picture).ellipse((10, 10, 54, 54), outline=(20, 20, 60), width=5)
    return tensor(picture)


def test_a_line_of_a_sketch_is_one_line(sketch):
    """Its edges are two rings, its line is one; light ink on dark paper means the same."""
    edge, line = (control_images.control_images(kind, sketch)[0, 0].bool() for kind in ("edges", "lines"))
    radius = ((torch.arange(64) - 32.0)[:, None] ** 2 + (torch.arange(64) - 32.0)[None] ** 2).sqrt()
    assert (radius[edge] < 18).any() and (radius[edge] > 21).any() and not ((radius[edge] - 19.5).abs() < 1).any()
    assert label(line.numpy(), connectivity=2).max() == 1  # along the middle of the stroke, and unbroken
    assert radius[line].min() > 17.5 and radius[line].max() < 21.5 and 100 < int(line.sum()) < 160
    assert torch.equal(control_images.lines(255 - sketch)[0, 0].bool(), line)


def test_canny_keeps_weak_edges_that_touch_strong_ones():
    """A step that fades from strong to weak is kept whole; a weak step alone is not an edge."""
    picture = np.zeros((SIDE, SIDE), np.float32)
    picture[:, 16:] = np.linspace(70, 35, SIDE)[:, None]  # |Gx| is four times the step: 280 to 140
    picture[:, 28:] = 30 + picture[:, 27:28]  # 120: weak, and apart
    images = torch.from_numpy(picture / 127.5 - 1).expand(1, 3, SIDE, SIDE)
    found = control_images.canny(images)[0, 0]
    columns = found[2:-2].mean(0)
    assert columns[15:17].sum() == 1 and columns[20:].sum() == 0


def test_canny_is_one_pixel_wide_and_finds_what_was_stored():
    """Beside this file are the edges that OpenCV 5.0's Canny(image, 100, 200) found in eight creatures.
    Of 32,768 pixels, 17 differ.
    """
    images = to_float(load("creatures", 64, n=8).pixels)
    found = control_images.canny(images)[:, 0].bool().numpy()
    stored = np.unpackbits(np.load(Path(__file__).with_name("canny_opencv.npy")))
    wanted = stored.reshape(8, 64, 64).astype(bool)
    agree = (found & wanted).sum() / (found | wanted).sum()
    assert agree > 0.99, agree
    ours = edges(images)[:, 0].bool().numpy()
    assert (ours & wanted).sum() / (ours | wanted).sum() < 0.9  # another drawing would be found out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Pictures, and beside each one another that it is to follow."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    (folder / "depth").mkdir(parents=True)
    for i, pixels in enumerate(load("creatures", SIDE, n=12).pixels):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
        Image.new("RGB", (SIDE, SIDE), (20 * i, 0, 255 - 20 * i)).save(folder / "depth" / f"{i:02d}.jpg", quality=100)
    rows = [
        {"file_name": f"{i:02d}.png", "text": "a creature", "conditioning_image": f"depth/{i:02d}.jpg"}
        for i in range(12)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_column_of_conditioning_images(pairs, base, tmp_path):
    """Every picture meets its own; a ControlNet trained on them opens, and was given colours, not lines."""
    images = load(str(pairs), SIDE, channels=3, captions=True)
    found = control_images.conditioning_images(images, str(pairs), SIDE)
    assert found.shape == (len(images), 3, SIDE, SIDE)
    for name, pixels in zip(images.texts.items, found, strict=True):
        assert abs(int(pixels[0].float().mean()) - 20 * int(Path(name).stem)) <= 2, name
    flags = [*TINY, "--steps", 2, "--model", base, "--data", pairs, "--measure", 1, "--control", "conditioning_image"]
    run_main(CONTROLNET, *flags, "--random-flip", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "controlnet" / "config.json").exists()
    assert controlnet.as_float(found).max() <= 1 and controlnet.as_float(found).max() > 0.8


def test_conditioning_images_that_are_missing(pairs, tmp_path):
    images = load(str(pairs), SIDE, channels=3, captions=True)
    rows = (pairs / "metadata.jsonl").read_text()
    try:
        (pairs / "metadata.jsonl").write_text(rows.replace("depth/00.jpg", "depth/none.jpg"))
        with pytest.raises(
            UserError, match=r"1 of \d+ pictures in .* have no conditioning image that is there, the first is 00.png"
        ):
            control_images.conditioning_images(images, str(pairs), SIDE)
        (pairs / "metadata.jsonl").write_text(rows.replace("conditioning_image", "other"))
        with pytest.raises(UserError, match="have no conditioning image .*'other': 'depth/00.jpg'"):
            control_images.conditioning_images(images, str(pairs), SIDE)
    finally:
        (pairs / "metadata.jsonl").write_text(rows)
    with pytest.raises(UserError, match="creatures is none"):
        control_images.conditioning_images(load("creatures", SIDE, n=2), "creatures", SIDE)


def test_lines_are_for_drawings_and_not_for_training(base, controlled, sketch, tmp_path, command_line):
    assert "--control lines is for drawings" in refused(
        command_line(CONTROLNET, *TINY, "--model", base, "--control", "lines", "--out", tmp_path / "run")
    )
    Image.fromarray(sketch[0].permute(1, 2, 0).numpy()).save(tmp_path / "sketch.png")
    flags = ["--model", base, "--size", 32, "--sample-steps", 1, "--device", "cpu", "--use", controlled]
    more = ["--image", tmp_path / "sketch.png", "--control", "lines", "--prompts", "a red one"]
    code, said, err = command_line(CONTROLNET, *flags, *more, "--sheet", tmp_path / "a.png")
    assert code == 0 and "agreement of edges" in said and "note:" not in said, err
    assert (
        control_images.looks_drawn(sketch).all()
        and not control_images.looks_drawn(load("creatures", 64, n=4).pixels).any()
    )


def test_a_controlnet_of_the_hub(controlled, tmp_path, monkeypatch):
    """What the hub's cache holds is found by its id; a name that leads nowhere is refused."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shot = tmp_path / "models--some--control" / "snapshots" / ("0" * 40)
    shot.mkdir(parents=True)
    for file in (controlled / "controlnet").iterdir():
        (shot / file.name).write_bytes(file.read_bytes())
    (tmp_path / "models--some--control" / "refs").mkdir()
    (tmp_path / "models--some--control" / "refs" / "main").write_text("0" * 40)
    assert controlnet.find_controlnet("some/control") == shot
    assert controlnet.find_controlnet(str(controlled)) == controlled
    with pytest.raises(UserError, match="there is no folder ./nowhere"):
        controlnet.find_controlnet("./nowhere")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="127.0.0.1:9 did not answer"):
        controlnet.find_controlnet("other/control")

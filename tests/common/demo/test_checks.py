"""What a visitor sends without the widgets: each is refused with a text of the page."""

import base64
import io

import pytest
from PIL import Image

from common.demo.page import checks
from common.demo.page.texts import TEXTS, PageError


def url(image: Image.Image, kind: str = "PNG", name: str = "png") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{name};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_what_the_widgets_send_is_taken():
    assert checks.whole(20.0, "steps", 2, 100) == 20
    assert checks.number(2.5, "guidance", 0, 12) == 2.5
    assert checks.choice("ddim", ("ddim", "ddpm")) == "ddim"
    assert checks.words(" a  red\ncreature ") == "a red creature"
    noise = Image.effect_noise((128, 128), 200).convert("RGBA")  # does not compress
    assert checks.image(url(noise)).size == (128, 128)


@pytest.mark.parametrize(
    "value", [None, "20", True, float("nan"), float("inf"), 1, 101, 20.5, [20], {"path": "/etc/passwd"}]
)
def test_wrong_numbers(value):
    with pytest.raises(PageError) as caught:
        checks.whole(value, "steps", 2, 100)
    assert caught.value.key == "error.range"


@pytest.mark.parametrize("value", [None, "heun; rm -rf /", ["ddim"], {"a": 1}, 3.5])
def test_wrong_choices(value):
    with pytest.raises(PageError) as caught:
        checks.choice(value, ("ddim", "ddpm"))
    assert caught.value.key == "error.choice"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("", "error.prompt"),
        ("\n ", "error.prompt"),
        (None, "error.prompt"),
        (["red"], "error.prompt"),
        ("x" * 201, "error.long"),
    ],
)
def test_wrong_words(value, key):
    with pytest.raises(PageError) as caught:
        checks.words(value, "error.prompt")
    assert caught.value.key == key


SMALL = Image.new("RGB", (128, 128), "red")
ODD = {
    "a path": "/etc/passwd",
    "an address": "http://127.0.0.1:1/x.png",
    "a file's address": "file:///etc/passwd",
    "a folder up": "data:image/png;base64,../../etc/passwd",
    "no base64": checks.PREFIX + "%%%%",
    "no picture": checks.PREFIX + base64.b64encode(b"<html>").decode(),
    "half a picture": url(Image.effect_noise((128, 128), 200))[:2000],
    "another format": url(SMALL, "JPEG", "png"),
    "another kind": url(SMALL, "GIF", "gif"),
    "another size": url(Image.new("RGB", (129, 128))),
    "too many pixels": url(Image.new("1", (12_000, 12_000))),
    "too many characters": checks.PREFIX + "A" * 10_000_000,
    "a dictionary": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_odd_pictures(value):
    with pytest.raises(PageError) as caught:
        checks.image(value)
    assert caught.value.key == "error.odd" and caught.value.key in TEXTS


@pytest.mark.parametrize("value", [None, ""])
def test_no_picture(value):
    with pytest.raises(PageError) as caught:
        checks.image(value)
    assert caught.value.key == "error.picture"

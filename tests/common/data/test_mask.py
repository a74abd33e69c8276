"""Masks as people make them: what each means, and those whose meaning cannot be known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from common.data.sources.mask import read_mask
from common.errors import UserError

BOX = (24, 24, 40, 40)
HOLE = np.zeros((64, 64), bool)
HOLE[24:41, 24:41] = True


def drawn(mode: str, ground, ink, box=BOX) -> Image.Image:
    image = Image.new(mode, (64, 64), ground)
    ImageDraw.Draw(image).rectangle(box, fill=ink)
    return image


def photo() -> Image.Image:
    r = np.random.default_rng(0)
    return Image.fromarray(r.integers(0, 256, (64, 64, 3), dtype=np.uint8)).filter(ImageFilter.BoxBlur(3))


def rubbed_out(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    ImageDraw.Draw(image).rectangle(BOX, fill=(0, 0, 0, 0))
    return image


def palette() -> Image.Image:
    image = drawn("P", 0, 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


CASES = {
    "plain": (drawn("L", 0, 255), "what is white"),
    "one bit": (drawn("1", 0, 1), "what is white"),
    "colour": (drawn("RGB", "black", "white"), "what is white"),
    "palette": (palette(), "what is white"),
    "scanned": (drawn("L", 6, 250), "what is white"),
    "sixteen bits": (Image.fromarray(np.asarray(drawn("L", 0, 255)).astype(np.uint16) * 257), "what is white"),
    "opaque alpha": (drawn("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)), "what is white"),
    "white on clear": (drawn("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)), "what is painted"),
    "white on clear white": (drawn("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)), "what is painted"),
    "red on clear": (drawn("RGBA", (0, 0, 0, 0), (255, 0, 0, 255)), "what is painted"),
    "grey with alpha": (drawn("LA", (0, 0), (255, 255)), "what is painted"),
    "black and white, clear in part": (
        Image.alpha_composite(
            drawn("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 63, 60)),
            drawn("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)),
        ),
        "what is white;",
    ),
    "a hole in a photo": (rubbed_out(photo()), "what is transparent"),
    "a hole in black": (rubbed_out(Image.new("RGB", (64, 64))), "what is transparent"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_mask_means(tmp_path, name):
    image, how = CASES[name]
    image.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(mask.image) == 255, HOLE) and set(np.unique(mask.image)) == {0, 255}
    assert mask.how.startswith(how) and mask.share == pytest.approx(HOLE.mean()) and not mask.notes
    assert str(mask).startswith("7.1% of the picture is to be repainted (what is ")


def test_the_ringing_of_a_jpeg_is_no_hole(tmp_path):
    CASES["plain"][0].save(tmp_path / "mask.jpg", quality=60)
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.jpg").image) == 255, HOLE)


def test_the_camera_turned_the_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn("L", 0, 255, (0, 0, 63, 31)).save(tmp_path / "mask.png", exif=exif)
    assert np.asarray(read_mask(tmp_path / "mask.png").image)[:, 32:].all()


def test_a_soft_mask_where_one_is_wanted(tmp_path):
    drawn("L", 0, 255).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "mask.png")
    assert len(np.unique(read_mask(tmp_path / "mask.png", soft=True).image)) > 5
    hard = read_mask(tmp_path / "mask.png")
    assert set(np.unique(hard.image)) == {0, 255} and hard.share == pytest.approx(HOLE.mean(), rel=0.15)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            drawn("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
            "painted in black on a transparent layer, which can mean either part",
        ),
        (Image.new("RGBA", (64, 64)), "transparent everywhere"),
        (
            Image.alpha_composite(
                drawn("RGBA", (0, 0, 0, 0), (255, 0, 0, 255)),
                drawn("RGBA", (0, 0, 0, 0), (0, 0, 255, 255), (0, 0, 9, 9)),
            ),
            "several colours on a transparent layer",
        ),
        (drawn("L", 0, 100), "nowhere lighter than grey 100 of 255"),
        (Image.new("L", (64, 64)), "nowhere lighter than grey 0"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "32-bit numbers"),
    ],
)
def test_masks_that_say_nothing(tmp_path, image, says):
    path = tmp_path / ("mask.tif" if image.mode == "F" else "mask.png")
    image.save(path)
    with pytest.raises(UserError, match=says):
        read_mask(path)


def test_masks_that_may_be_a_mistake(tmp_path):
    photo().save(tmp_path / "photo.png")
    assert "neither black nor white, as in a picture" in read_mask(tmp_path / "photo.png").notes[0]
    drawn("L", 255, 0).save(tmp_path / "inverted.png")
    assert "invert it" in read_mask(tmp_path / "inverted.png").notes[0]
    (tmp_path / "text.png").write_text("no picture")
    for name, says in (("text.png", "cannot be read as a picture"), ("nowhere.png", "there is no file")):
        with pytest.raises(UserError, match=says):
            read_mask(tmp_path / name)

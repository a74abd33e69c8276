"""Views of pictures to train on: mirror images, crops, whole pictures in buckets of one aspect ratio."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data import load
from common.errors import UserError
from common.io.pixels import to_bytes
from finetune_diffusers.data import views
from finetune_diffusers.data.latent_dataset import Bucketed, CaptionedLatents
from finetune_diffusers.images import to_tensor
from helpers.finetune_programs import FEW, FINETUNE, LORA
from helpers.programs import run_main

SIZES = [(96, 48), (48, 48), (40, 80), (100, 50)]  # width, height


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures of several shapes: red grows to the right, green downwards."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    for i, (width, height) in enumerate(SIZES):
        picture = Image.new("RGB", (width, height))
        picture.putdata([(x * 255 // width, y * 255 // height, 50 * i) for y in range(height) for x in range(width)])
        picture.save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(len(SIZES))]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def images(photos):
    return load(str(photos), 32, channels=3, captions=True)


def test_mirror_images_follow_the_pictures(images):
    both = views.mirrored(images)
    assert len(both) == 8 and both.captions == images.captions * 2
    assert torch.equal(both.pixels[:4], images.pixels) and torch.equal(both.pixels[4:], images.pixels.flip(3))


def test_crops_show_all_parts_of_a_picture(images, photos):
    """Squares along the long side: of a landscape every column is seen, of a square picture always the whole."""
    found = views.crops(images, str(photos), 12, seed=0)
    assert len(found) == 48 and found.captions[:13] == ("picture 0",) * 12 + ("picture 1",)
    red, green = found.pixels[:12, 0].float(), found.pixels[:12, 1].float()
    assert red.min() < 40 and red.max() > 215 and (red.amax((1, 2)) - red.amin((1, 2))).max() < 135
    assert green.amin((1, 2)).max() < 10 and green.amax((1, 2)).min() > 240  # the full height in each
    assert torch.equal(found.pixels[12:24], found.pixels[12:13].expand(12, -1, -1, -1))
    assert torch.equal(found.pixels, views.crops(images, str(photos), 12, seed=0).pixels)
    assert not torch.equal(found.pixels[:12], views.crops(images, str(photos), 12, seed=1).pixels[:12])


def test_buckets_keep_shapes(images, photos):
    sets = views.buckets(images, str(photos), 8)
    assert {some.pixels.shape[2:]: some.captions for some in sets} == {
        (24, 48): ("picture 0", "picture 3"),
        (32, 32): ("picture 1",),
        (48, 24): ("picture 2",),
    }
    first = next(some for some in sets if some.pixels.shape[3] == 48)
    whole = to_bytes(to_tensor(Image.open(photos / "0.png").resize((48, 24), Image.Resampling.BICUBIC)))
    assert torch.equal(first.pixels[0], whole)
    assert views.shapes(sets) == "1 of 24x48, 1 of 32x32, 2 of 48x24"


@pytest.mark.parametrize(
    ("picture", "side", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((1920, 1080), 512, (704, 384)),
        ((1000, 100), 512, (704, 384)),
        ((3, 4), 64, (64, 64)),
    ],
)
def test_the_size_of_a_bucket(picture, side, expected):
    """About side x side pixels, multiples of 64, and no shape beyond two to one."""
    assert views.bucket(*picture, side, 64) == expected


def latents(n: int, height: int, width: int) -> CaptionedLatents:
    mean = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 4, height, width)
    return CaptionedLatents(
        mean, mean, {"text": torch.zeros(1, 3, 5)}, torch.zeros(n, dtype=int), {"text": torch.zeros(3, 5)}
    )


def test_batches_come_from_one_bucket_and_every_picture_comes():
    data = Bucketed([latents(5, 4, 8), latents(2, 8, 4), latents(4, 6, 6)])
    assert len(data) == 11
    batches = [data.indices(2, k, seed=0) for k in range(12)]  # two epochs: 3 + 1 + 2 batches each
    for indices in batches:
        batch = data.batch(indices)  # fails where shapes differ
        assert batch["mean"].shape[0] == 2 and batch["text"].shape == (2, 3, 5)
    for epoch in (batches[:6], batches[6:]):
        counts = Counter(torch.cat(epoch).tolist())
        assert set(counts) == set(range(11)) and sum(counts.values()) == 12  # one comes twice, to fill a batch
    assert [b.tolist() for b in batches[:6]] != [b.tolist() for b in batches[6:]]
    assert torch.equal(data.indices(2, 7, seed=0), batches[7])  # of the number alone, for a resumed run


def test_a_lora_of_pictures_in_their_own_shapes(photos, base, tmp_path, command_line):
    """Trained in buckets and with mirror images; what is not drawn gets no style, and its captions are the prompts."""
    flags = [*FEW, "--steps", 2, "--lr", 1e-2, "--model", base, "--data", photos, "--measure", 0, "--rank", 2]
    code, out, err = command_line(LORA, *flags, "--buckets", "--random-flip", "--out", tmp_path / "run")
    assert code == 0, err
    assert "buckets: 2 of 24x48, 2 of 32x32, 4 of 48x24" in out and 'the first caption is "picture' in out
    assert (tmp_path / "run" / "photos.safetensors").exists()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["style"] == "none" and saved["random_flip"] and saved["buckets"]


def test_crops_and_buckets_need_files_and_exclude_each_other(photos, base, tmp_path):
    flags = [*FEW, "--model", base, "--measure", 0, "--out", tmp_path / "run", "--n", 4]
    with pytest.raises(UserError, match="read the pictures' own files, and creatures is no folder"):
        run_main(FINETUNE, *flags, "--buckets")
    with pytest.raises(UserError, match="give one of them"):
        run_main(FINETUNE, *flags, "--data", photos, "--buckets", "--crops", 2)

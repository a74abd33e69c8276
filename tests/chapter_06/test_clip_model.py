"""The Chinese CLIP: two libraries with one set of weights."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import cn_clip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from common.data.dishes.captions import names_of
from common.data.dishes.menu import DISHES
from common.errors import UserError
from common.models.text.encoders import CLIPTextEncoder
from helpers.chapter_06 import TEXTS, attributes_of, shaken, small_config, small_vocab
from helpers.programs import ROOT, load_program
from inpaint_gif.clip import dish_names, formats, model
from inpaint_gif.clip.formats import CLIPCheckpoint, CLIPConfig
from inpaint_gif.clip.model import ChineseCLIP, load_clip, preprocess, trim_padding


def published_config(**changes) -> CLIPConfig:
    """The sizes of ViT-B-16, as cn_clip describes it."""
    configs = Path(cn_clip.__file__).parent / "clip" / "model_configs"
    sizes = [
        json.loads((configs / f"{name}.json").read_text()) for name in ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
    ]
    return CLIPConfig(**sizes[0] | sizes[1] | changes)


def test_the_folder_is_the_model_that_transformers_opens(checkpoint, checkpoint_folder, images):
    theirs = transformers.ChineseCLIPModel.from_pretrained(checkpoint_folder, dtype=torch.float32).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint_folder)(
        TEXTS[:4], padding=True, return_tensors="pt"
    )
    ours = ChineseCLIP(checkpoint, "transformers")
    with torch.no_grad():
        texts = F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
        pictures = F.normalize(theirs.get_image_features(preprocess(images, 32)).pooler_output, dim=-1)
    torch.testing.assert_close(ours.encode_text(TEXTS[:4]), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_image(images), pictures, atol=1e-5, rtol=0)
    assert (1 - texts @ texts.T).max() > 0.01  # they do differ


def test_from_transformers_to_cn_clip(checkpoint, images):
    """The weights of a ChineseCLIPModel give the same vectors in cn_clip, whatever the padding."""
    first, second = ChineseCLIP(checkpoint, "cn_clip"), ChineseCLIP(checkpoint, "transformers")
    assert type(first.network.clip).__module__ == "cn_clip.clip.model" and first.scale == pytest.approx(math.exp(2.5))
    torch.testing.assert_close(first.encode_text(TEXTS), second.encode_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.encode_image(images), second.encode_image(images), atol=1e-5, rtol=0)
    with torch.no_grad():  # cn_clip itself, on rows of 52 tokens with all their padding
        whole = F.normalize(first.network.clip.encode_text(first.network.ids(TEXTS)), dim=-1)
    torch.testing.assert_close(first.encode_text(TEXTS), whole, atol=1e-5, rtol=0)


def test_from_cn_clip_to_transformers(images):
    """The other way: a model born in cn_clip."""
    from cn_clip.clip.model import CLIP

    words = small_vocab()
    torch.manual_seed(3)
    theirs = shaken(CLIP(**asdict(small_config(words))), 3)
    theirs.tokenizer = model.CnCLIPNetwork(
        CLIPCheckpoint(small_config(words), theirs.state_dict(), words, "a test"), 52
    ).tokenizer
    ours = ChineseCLIP(CLIPCheckpoint(small_config(words), theirs.state_dict(), words, "a test"), "transformers")
    with torch.no_grad():
        texts = F.normalize(theirs.encode_text(ours.network.ids(TEXTS)), dim=-1)
        pictures = F.normalize(theirs.encode_image(preprocess(images, 32)), dim=-1)
    torch.testing.assert_close(ours.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_image(images), pictures, atol=1e-5, rtol=0)
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def test_the_published_geometry_in_both_libraries():
    """ViT-B-16 with random weights, 224 pixels and the whole vocabulary. Two layers of each network instead of twelve:
    the whole model needs more than 2 GB here."""
    words, shape = model.package_vocab(), published_config(vision_layers=2, text_num_hidden_layers=2)
    torch.manual_seed(0)
    state = shaken(
        transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers())), scale=0.05
    ).state_dict()
    checkpoint = CLIPCheckpoint(shape, formats.from_transformers(state), words, "a test")
    assert formats.config_from_weights(checkpoint.state, "a test") == shape
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    first, second = (
        torch.cat([clip.encode_text(TEXTS), clip.encode_image(pictures)])
        for clip in (ChineseCLIP(checkpoint, backend) for backend in model.BACKENDS)
    )
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert (first[0] - first[1]).abs().max() > 1e-3 and (first[-1] - first[-2]).abs().max() > 1e-3


def test_a_file_of_the_published_geometry_in_cn_clips_layout(tmp_path, monkeypatch):
    """clip_cn_vit-b-16.pt, as cn_clip's training writes it: half precision, and names that begin with "module." Two
    layers of each network, as above."""
    from cn_clip.clip import tokenize

    shape = published_config(vision_layers=2, text_num_hidden_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = cn_clip_model(shape).half()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "name": "muge", "state_dict": state}, tmp_path / "clip_cn_vit-b-16.pt")
    monkeypatch.setattr(model, "CACHE", tmp_path)
    clip = load_clip("ViT-B-16")
    assert clip.backend == "cn_clip" and clip.checkpoint.config == shape and (clip.dim, clip.size) == (512, 224)
    pictures = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs.float()
    with torch.no_grad():
        texts = F.normalize(theirs.encode_text(tokenize(["番茄炒蛋", "米饭"])), dim=-1)
        seen = F.normalize(theirs.encode_image(preprocess(pictures, 224)), dim=-1)
    torch.testing.assert_close(clip.encode_text(["番茄炒蛋", "米饭"]), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_image(pictures), seen, atol=1e-5, rtol=0)


def test_names_and_shapes_of_the_whole_published_geometry():
    """All twelve layers of each network, on a device that holds no numbers."""
    shape = published_config()
    assert (shape.vision_layers, shape.text_num_hidden_layers) == (12, 12)
    with torch.device("meta"):
        ours = {name: value for name, value in cn_clip_model(shape).state_dict().items() if "pooler" not in name}
        theirs = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers())).state_dict()
    assert formats.config_from_weights(ours, "a test") == shape
    wanted = {name: value.shape for name, value in theirs.items() if not name.endswith("position_ids")}
    assert {name: value.shape for name, value in formats.to_transformers(ours).items()} == wanted
    back = formats.from_transformers(formats.to_transformers(ours))
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}
    assert sum(value.numel() for value in ours.values()) > 180e6


def cn_clip_model(shape: CLIPConfig) -> torch.nn.Module:
    """cn_clip's own network of this architecture, with random weights."""
    from cn_clip.clip.model import CLIP

    return CLIP(**asdict(shape)).eval()


def test_the_shipped_clip_in_both_libraries(images):
    first, second = (load_clip("pretrained", backend) for backend in model.BACKENDS)
    assert load_clip("pretrained").backend == "cn_clip"
    texts = [*TEXTS, *dish_names.HELD_OUT.values()]
    torch.testing.assert_close(first.encode_text(texts), second.encode_text(texts), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.encode_image(images), second.encode_image(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("program", ["make_gif", "train_text2dish", "evaluate_clip", "evaluate_gif", "generate"])
def test_cn_clip_is_the_default_of_every_program(program):
    assert load_program(f"06_inpaint_gif/{program}.py").Args.__dataclass_fields__["backend"].default == "cn_clip"


@pytest.mark.filterwarnings("error")
def test_cn_clip_is_imported_in_silence(checkpoint, capfd):
    """Neither warnings nor output, and none of what it lists and the course does not install."""
    clip = ChineseCLIP(checkpoint)
    clip.encode_text(["米饭"])
    assert capfd.readouterr() == ("", "") and clip.backend == "cn_clip"
    assert not {name for name in sys.modules if name.split(".")[0] == "pkg_resources"}


def test_names_of_weights_go_there_and_back(checkpoint):
    """Every weight of cn_clip's model and no other; back again they are the same numbers."""
    from cn_clip.clip.model import CLIP

    born = CLIP(**asdict(checkpoint.config)).state_dict()
    assert {key: value.shape for key, value in born.items()} == {
        key: value.shape for key, value in checkpoint.state.items()
    }
    back = formats.from_transformers(formats.to_transformers(checkpoint.state))
    assert back.keys() == checkpoint.state.keys()
    assert all(torch.equal(back[key], checkpoint.state[key]) for key in back)


def test_a_text_may_be_of_any_length(checkpoint):
    """Columns of padding that nobody needs are left out; what is longer than the model reads is cut."""
    clip = ChineseCLIP(checkpoint, "transformers")
    alone, together = clip.encode_text(["米饭"]), clip.encode_text(["米饭", "长" * 80])
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=0)
    assert torch.equal(clip.encode_text(["番" * 60]), clip.encode_text(["番" * 50]))
    assert clip.encode_text([]).shape == (0, 24) and clip.encode_image(torch.zeros(0, 3, 8, 8)).shape == (0, 24)
    with pytest.raises(TypeError, match="list of texts"):
        clip.encode_text("米饭")


def test_both_tokenizers_cut_alike(checkpoint):
    """On odd texts, all names of the menu, and every caption of a set: with our vocabulary, and with cn_clip's own."""
    rng = np.random.default_rng(0)
    captions = [text for dish in DISHES for text in dish_names.captions_of(attributes_of(dish), 2, rng)]
    texts = [
        *TEXTS,
        *captions,
        *(name for dish in DISHES for language in ("zh", "en") for name in names_of(dish, language)),
    ]
    first, second = model.CnCLIPNetwork(checkpoint, 52), model.TransformersNetwork(checkpoint, 52)
    assert torch.equal(first.ids(texts), second.ids(texts))
    from cn_clip.clip import tokenize

    whole = model.package_vocab()
    assert len(whole) == 21128
    assert torch.equal(tokenize(texts), model.bert_tokenizer(whole, 52)(texts))


def test_pictures_are_prepared_as_cn_clip_does():
    """Resized with PIL's bicubic curve, coloured as CLIP wants them;
    ours goes through floats, theirs through bytes.
    """
    from cn_clip.clip import image_transform

    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    pixels = np.array(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    for size, tolerance in ((96, 1e-5), (32, 0.03)):
        assert (preprocess(ours, size)[0] - image_transform(size)(Image.fromarray(pixels))).abs().max() < tolerance


def test_the_processor_of_transformers_does_the_same(checkpoint_folder):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    processor = transformers.ChineseCLIPProcessor.from_pretrained(checkpoint_folder)
    theirs = processor(text=["米饭"], images=[Image.fromarray(pixels)], return_tensors="pt")
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(preprocess(ours, 32), theirs.pixel_values, atol=1e-5, rtol=0)
    assert torch.equal(theirs.input_ids, trim_padding(model.bert_tokenizer(small_vocab(), 52)(["米饭"])))


def test_grey_pictures_and_strange_shapes(checkpoint):
    clip = ChineseCLIP(checkpoint, "transformers")
    grey = torch.rand(2, 1, 20, 20) * 2 - 1
    torch.testing.assert_close(clip.encode_image(grey), clip.encode_image(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(clip.encode_image(grey).norm(dim=1), torch.ones(2))
    with pytest.raises(UserError, match=r"not \(2, 4, 8, 8\)"):
        clip.encode_image(torch.zeros(2, 4, 8, 8))


def test_the_text_encoder_interface_of_the_course_opens_it(checkpoint_folder, checkpoint):
    """common/text reads the same folder: a U-Net can look at the single characters, too."""
    clip = CLIPTextEncoder(str(checkpoint_folder))
    assert (clip.dim, clip.length) == (48, 52) and clip(["米饭"]).shape == (1, 52, 48)


def test_without_cn_clip_its_installation_is_named(checkpoint_folder, monkeypatch):
    """Before anything is read; the second backend computes all the same."""
    monkeypatch.setattr(model, "cn_clip_installed", lambda: False)
    for name in (checkpoint_folder, "ViT-B-16", "no-such-name"):
        with pytest.raises(
            UserError,
            match=f"cn_clip is not installed; install it with {model.INSTALL}, or use --backend transformers",
        ):
            load_clip(name)
    assert load_clip(checkpoint_folder, "transformers").encode_text(["米饭"]).shape == (1, 24)
    assert (ROOT / model.INSTALL.split()[-1]).exists()


def test_a_cn_clip_that_cannot_be_imported(checkpoint, monkeypatch):
    """As beside version 2 of flash_attn, where cn_clip looks for a module of version 1."""
    monkeypatch.setitem(sys.modules, "cn_clip.clip.model", None)
    with pytest.raises(
        UserError,
        match=r"cn_clip is installed, but cannot be imported \(.*cn_clip.clip.model.*\); use --backend transformers",
    ):
        ChineseCLIP(checkpoint)


def test_runs_from_before_open_with_the_default(checkpoint_folder):
    """Their config.json says "auto"."""
    assert load_clip(checkpoint_folder, "auto").backend == "cn_clip"

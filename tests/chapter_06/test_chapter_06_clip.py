"""Chapter 6's Chinese CLIP: two libraries with one set of weights, its loss, its training, what it makes of names."""

import argparse
import csv
import dataclasses
import json
import math
import re
import shutil
import sys
from pathlib import Path

import cn_clip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from cn_clip.clip.model import convert_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from common.data import Images, load
from common.data.captions import mostly_chinese
from common.data.dishes.captions import names_of
from common.data.dishes.menu import DISHES
from common.errors import UserError
from common.models.text.encoders import CLIPTextEncoder
from common.random import BatchRandom
from helpers.programs import ROOT, load_program, run_main
from inpaint_gif.clip import dish_names, retrieval
from inpaint_gif.clip import formats as clip_forms
from inpaint_gif.clip import loss as contrast
from inpaint_gif.clip import model as clip_zh
from inpaint_gif.clip import trainer as fit_clip

TRAIN, EVALUATE, CONVERT = (f"06_inpaint_gif/{name}_clip.py" for name in ("train", "evaluate", "convert"))
train_clip = load_program(TRAIN)
Shape, Form, ChineseClip = clip_forms.Shape, clip_forms.Form, clip_zh.ChineseClip

TINY = ["--size", 32, "--patch", 16, "--width", 32, "--layers", 1, "--text-width", 32, "--text-layers", 1, "--dim", 16, "--batch-size", 6,
        "--device", "cpu", "--precision", "no"]  # fmt: skip
DRAWN = [*TINY, "--n", 12, "--held-out", 8]
TEXTS = ["番茄炒蛋", "一盘西红柿炒鸡蛋，木桌", "", "米饭 rice", "龘龘", "[SEP][MASK] [PAD]", "ÉCLAIR 2", "　全角　空格\t\n", "长" * 80, "番茄（大）、蛋！"]
WEIGHTS = "model/model.safetensors"


def shaken(net: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """With every weight moved, so that nothing is one or zero by its birth and no mistake can hide there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
        net.logit_scale.fill_(2.5)
    return net.eval()


def words_for(texts=TEXTS[:4]) -> tuple[str, ...]:
    return dish_names.vocabulary(texts)


def small_shape(words, **changes) -> Shape:
    sizes = {"embed_dim": 24, "image_resolution": 32, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 8, "vision_head_width": 32,
             "vocab_size": len(words), "text_hidden_size": 48, "text_intermediate_size": 80, "text_num_attention_heads": 3,
             "text_num_hidden_layers": 2, "text_max_position_embeddings": 52}  # fmt: skip
    return Shape(**sizes | changes)


@pytest.fixture(scope="module")
def form() -> Form:
    """A model that was never trained, born in transformers."""
    words = words_for()
    torch.manual_seed(0)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**small_shape(words).to_transformers()))
    return Form(small_shape(words), clip_forms.from_transformers(shaken(net).state_dict()), words, "a test")


@pytest.fixture(scope="module")
def folder(form, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "model"
    clip_forms.save_folder(path, form)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six steps on twelve drawn dishes. Read only."""
    path = tmp_path_factory.mktemp("chapter_06") / "run"
    run_main(TRAIN, *DRAWN, "--steps", 6, "--save-every", 3, "--out", path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ----------------------------------------------------------------------------------------------- two libraries, one model


def test_the_folder_is_the_model_that_transformers_opens(form, folder, images):
    theirs = transformers.ChineseCLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[:4], padding=True, return_tensors="pt")
    ours = ChineseClip(form, "transformers")
    with torch.no_grad():
        texts = F.normalize(theirs.get_text_features(**tokens).pooler_output, dim=-1)
        pictures = F.normalize(theirs.get_image_features(clip_zh.look(images, 32)).pooler_output, dim=-1)
    torch.testing.assert_close(ours.encode_text(TEXTS[:4]), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_image(images), pictures, atol=1e-5, rtol=0)
    assert (1 - texts @ texts.T).max() > 0.01  # they do differ


def test_from_transformers_to_cn_clip(form, images):
    """The weights of a ChineseCLIPModel give the same vectors in cn_clip, whatever the padding."""
    first, second = ChineseClip(form, "cn_clip"), ChineseClip(form, "transformers")
    assert type(first.network.clip).__module__ == "cn_clip.clip.model" and first.scale == pytest.approx(math.exp(2.5))
    torch.testing.assert_close(first.encode_text(TEXTS), second.encode_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.encode_image(images), second.encode_image(images), atol=1e-5, rtol=0)
    with torch.no_grad():  # cn_clip itself, on rows of 52 tokens with all their padding
        whole = F.normalize(first.network.clip.encode_text(first.network.ids(TEXTS)), dim=-1)
    torch.testing.assert_close(first.encode_text(TEXTS), whole, atol=1e-5, rtol=0)


def test_from_cn_clip_to_transformers(images):
    """The other way: a model born in cn_clip."""
    from cn_clip.clip.model import CLIP

    words = words_for()
    torch.manual_seed(3)
    theirs = shaken(CLIP(**dataclasses.asdict(small_shape(words))), 3)
    theirs.tokenizer = clip_zh.CnClip(Form(small_shape(words), theirs.state_dict(), words, "a test"), 52).words
    ours = ChineseClip(Form(small_shape(words), theirs.state_dict(), words, "a test"), "transformers")
    with torch.no_grad():
        texts = F.normalize(theirs.encode_text(ours.network.ids(TEXTS)), dim=-1)
        pictures = F.normalize(theirs.encode_image(clip_zh.look(images, 32)), dim=-1)
    torch.testing.assert_close(ours.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_image(images), pictures, atol=1e-5, rtol=0)
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def published_shape(**changes) -> Shape:
    """The sizes of ViT-B-16, as cn_clip describes it."""
    configs = Path(cn_clip.__file__).parent / "clip" / "model_configs"
    sizes = [json.loads((configs / f"{name}.json").read_text()) for name in ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")]
    return Shape(**sizes[0] | sizes[1] | changes)


def test_the_published_geometry_in_both_libraries():
    """ViT-B-16 with random weights, 224 pixels and the whole vocabulary. Two layers of each network instead of twelve: the whole model
    needs more than 2 GB here."""
    words, shape = clip_zh.package_words(), published_shape(vision_layers=2, text_num_hidden_layers=2)
    torch.manual_seed(0)
    state = shaken(transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers())), scale=0.05).state_dict()
    form = Form(shape, clip_forms.from_transformers(state), words, "a test")
    assert clip_forms.shape_of_state(form.state, "a test") == shape
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    first, second = (torch.cat([clip.encode_text(TEXTS), clip.encode_image(pictures)]) for clip in (ChineseClip(form, door) for door in clip_zh.DOORS))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert (first[0] - first[1]).abs().max() > 1e-3 and (first[-1] - first[-2]).abs().max() > 1e-3


def test_the_shipped_clip_in_both_libraries(images):
    first, second = (clip_zh.load_clip("pretrained", door) for door in clip_zh.DOORS)
    assert clip_zh.load_clip("pretrained").backend == "cn_clip"
    texts = [*TEXTS, *dish_names.HELD_OUT.values()]
    torch.testing.assert_close(first.encode_text(texts), second.encode_text(texts), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.encode_image(images), second.encode_image(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("program", ["make_gif", "train_text2dish", "evaluate_clip", "evaluate_film", "control"])
def test_cn_clip_is_the_default_of_every_program(program):
    assert load_program(f"06_inpaint_gif/{program}.py").Args.__dataclass_fields__["backend"].default == "cn_clip"


@pytest.mark.filterwarnings("error")
def test_cn_clip_is_imported_in_silence(form, capfd):
    """Neither warnings nor output, and none of what it lists and the course does not install."""
    clip = ChineseClip(form)
    clip.encode_text(["米饭"])
    assert capfd.readouterr() == ("", "") and clip.backend == "cn_clip"
    assert not {name for name in sys.modules if name.split(".")[0] == "pkg_resources"}


def test_names_of_weights_go_there_and_back(form):
    """Every weight of cn_clip's model and no other; back again they are the same numbers."""
    from cn_clip.clip.model import CLIP

    born = CLIP(**dataclasses.asdict(form.shape)).state_dict()
    assert {key: value.shape for key, value in born.items()} == {key: value.shape for key, value in form.state.items()}
    back = clip_forms.from_transformers(clip_forms.to_transformers(form.state))
    assert back.keys() == form.state.keys()
    assert all(torch.equal(back[key], form.state[key]) for key in back)


def test_a_text_may_be_of_any_length(form):
    """Columns of padding that nobody needs are left out; what is longer than the model reads is cut."""
    clip = ChineseClip(form, "transformers")
    alone, together = clip.encode_text(["米饭"]), clip.encode_text(["米饭", "长" * 80])
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=0)
    assert torch.equal(clip.encode_text(["番" * 60]), clip.encode_text(["番" * 50]))
    assert clip.encode_text([]).shape == (0, 24) and clip.encode_image(torch.zeros(0, 3, 8, 8)).shape == (0, 24)
    with pytest.raises(TypeError, match="list of texts"):
        clip.encode_text("米饭")


def test_both_tokenizers_cut_alike(form):
    """On odd texts, all names of the menu, and every caption of a set: with our vocabulary, and with cn_clip's own."""
    rng = np.random.default_rng(0)
    captions = [text for dish in DISHES for text in dish_names.captions_of(attributes_of(dish), 2, rng)]
    texts = [*TEXTS, *captions, *(name for dish in DISHES for language in ("zh", "en") for name in names_of(dish, language))]
    first, second = clip_zh.CnClip(form, 52), clip_zh.Transformers(form, 52)
    assert torch.equal(first.ids(texts), second.ids(texts))
    from cn_clip.clip import tokenize

    whole = clip_zh.package_words()
    assert len(whole) == 21128
    assert torch.equal(tokenize(texts), clip_zh.words_of(whole, 52)(texts))


def test_pictures_are_prepared_as_cn_clip_does():
    """Resized with PIL's bicubic curve, coloured as CLIP wants them; ours goes through floats, theirs through bytes."""
    from cn_clip.clip import image_transform

    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    pixels = np.array(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    for size, tolerance in ((96, 1e-5), (32, 0.03)):
        assert (clip_zh.look(ours, size)[0] - image_transform(size)(Image.fromarray(pixels))).abs().max() < tolerance


def test_the_processor_of_transformers_does_the_same(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    processor = transformers.ChineseCLIPProcessor.from_pretrained(folder)
    theirs = processor(text=["米饭"], images=[Image.fromarray(pixels)], return_tensors="pt")
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(clip_zh.look(ours, 32), theirs.pixel_values, atol=1e-5, rtol=0)
    assert torch.equal(theirs.input_ids, clip_zh.short(clip_zh.words_of(words_for(), 52)(["米饭"])))


def test_grey_pictures_and_strange_shapes(form):
    clip = ChineseClip(form, "transformers")
    grey = torch.rand(2, 1, 20, 20) * 2 - 1
    torch.testing.assert_close(clip.encode_image(grey), clip.encode_image(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(clip.encode_image(grey).norm(dim=1), torch.ones(2))
    with pytest.raises(UserError, match=r"not \(2, 4, 8, 8\)"):
        clip.encode_image(torch.zeros(2, 4, 8, 8))


def test_the_text_encoder_interface_of_the_course_opens_it(folder, form):
    """common/text reads the same folder: a U-Net can look at the single characters, too."""
    clip = CLIPTextEncoder(str(folder))
    assert (clip.dim, clip.length) == (48, 52) and clip(["米饭"]).shape == (1, 52, 48)


# ------------------------------------------------------------------------------------------------------------- the loss


def double_loop(images, texts, dish, scale) -> list[float]:
    """The formula of contrast.py, one number after another."""
    n, losses = len(dish), []
    for i in range(n):
        total = 0.0
        for mine, others in ((images, texts), (texts, images)):
            scores = [scale * sum(float(a) * float(b) for a, b in zip(mine[i], others[j], strict=True)) for j in range(n)]
            whole = math.log(sum(math.exp(s) for s in scores))
            right = [j for j in range(n) if dish[j] == dish[i]]
            total += -sum(scores[j] - whole for j in right) / len(right) - math.log(len(right))
        losses.append(total / 2)
    return losses


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_loss_against_a_double_loop():
    x, y, dish = unit(7, 5), unit(7, 5, seed=1), torch.tensor([0, 1, 0, 2, 0, 1, 3])
    ours = contrast.contrast(x, y, dish, torch.tensor(6.0))
    assert ours.tolist() == pytest.approx(double_loop(x, y, dish.tolist(), 6.0), abs=1e-5)
    assert ours.min() > 0.1


def test_loss_is_clips_where_all_dishes_differ():
    x, y = unit(6, 5), unit(6, 5, seed=1)
    logits, each = 4.0 * x @ y.T, torch.arange(6)
    theirs = (F.cross_entropy(logits, each) + F.cross_entropy(logits.T, each)) / 2
    torch.testing.assert_close(contrast.contrast(x, y, each, torch.tensor(4.0)).mean(), theirs)


def test_the_same_dish_is_no_negative():
    """Two plates of one dish with the same vector: nothing to improve, where CLIP's own loss would push them apart for ever."""
    x = torch.eye(4)[[0, 0, 1, 2]].requires_grad_()
    dish = torch.tensor([0, 0, 1, 2])
    loss = contrast.contrast(x, x.detach(), dish, torch.tensor(50.0))
    assert loss.abs().max() < 1e-5
    loss.mean().backward()
    assert x.grad.abs().max() < 1e-4
    logits, each = 50.0 * torch.eye(4)[[0, 0, 1, 2]] @ torch.eye(4)[[0, 0, 1, 2]].T, torch.arange(4)
    assert F.cross_entropy(logits, each, reduction="none")[0] == pytest.approx(math.log(2), abs=1e-4)


def test_the_scale_has_a_limit():
    assert float(contrast.sharpness(torch.tensor(9.0))) == pytest.approx(100.0)
    assert float(contrast.sharpness(torch.tensor(1.0))) == pytest.approx(math.e)


# ------------------------------------------------------------------------------------------------------------- the names


def attributes_of(dish: str) -> dict[str, str]:
    entry = DISHES[dish]
    vessel = entry.vessels[0]
    glaze = "none" if vessel in ("steamer", "clay pot") else "white"
    return {"dish": dish, "style": entry.style, "vessel": vessel, "glaze": glaze, "table": "wood"}


def test_held_out_names_are_held_out():
    """They are last other names, belong to one dish each, and are in no caption; everything else is learned."""
    held_out = set(dish_names.HELD_OUT.values())
    assert dish_names.HELD_OUT["番茄炒蛋"] == "番茄炒鸡蛋" and 20 < len(held_out) == len(dish_names.HELD_OUT)
    learned = {name for names in dish_names.LEARNED.values() for name in names}
    assert not learned & held_out
    assert learned | held_out == {name for dish in DISHES for name in names_of(dish, "zh")}
    said = set()
    for k, dish in enumerate(DISHES):
        captions = dish_names.captions_of(attributes_of(dish), 40, np.random.default_rng(k))
        said |= set(captions[::2])
        assert not any(dish_names.HELD_OUT.get(dish, "-") in text for text in captions)
        assert all(any(name in text for name in dish_names.LEARNED[dish]) for text in captions)
        assert any(text not in learned for text in captions[1::2])  # those speak of the vessel, too
    assert said == learned


def test_vocabulary_knows_its_captions_and_nothing_else(form):
    words = dish_names.vocabulary(["番茄（大）", "Thé 5%"])
    assert words[:5] == clip_forms.SPECIAL and len(set(words)) == len(words)
    assert set("番茄（大）%") <= set(words) and {"t", "##h", "##e", "5"} <= set(words)
    clip = ChineseClip(form, "transformers")
    assert clip.unknown("番茄烧龘肉龘") == ["烧", "龘", "肉"] and clip.unknown("番茄 炒蛋") == []
    assert torch.equal(clip.encode_text(["番龘"]), clip.encode_text(["番肉"]))  # one [UNK] for both


def menu_clip() -> ChineseClip:
    """A CLIP, untrained, that has read all names it is to learn."""
    words = words_for([name for names in dish_names.LEARNED.values() for name in names])
    shape = small_shape(words)
    torch.manual_seed(0)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return ChineseClip(Form(shape, clip_forms.from_transformers(net.state_dict()), words, "a test"), "transformers")


def test_orders():
    """What is on the menu is served in silence; for everything else there is a sentence, and the best that can be done."""
    clip = menu_clip()
    plain = dish_names.take_order(clip, " 番茄炒蛋 ")
    assert (plain.name, plain.dish, plain.remarks) == ("番茄炒蛋", "番茄炒蛋", ()) and plain.nearest[0][1] > 0.5
    assert dish_names.take_order(clip, "土鸡蛋炒番茄").dish == dish_names.take_order(clip, "番茄炒鸡蛋").dish == "番茄炒蛋"
    english = dish_names.take_order(clip, "peking duck")
    assert (english.name, english.dish) == ("北京烤鸭", "北京烤鸭") and "is read as 北京烤鸭" in english.remarks[0]
    secret = dish_names.take_order(clip, "抄手")  # no character of it is known, but the menu knows the name
    assert (secret.name, secret.dish) == ("馄饨", "馄饨") and "read as 馄饨" in secret.remarks[0]
    unknown = dish_names.take_order(clip, "炸龘龘")
    assert unknown.dish is None and unknown.name == "炸龘龘" and len(unknown.nearest) == 3
    assert "never read 龘," in unknown.remarks[0] and "best effort" in unknown.remarks[1] and unknown.nearest[0][0] in unknown.remarks[1]
    foreign = dish_names.take_order(clip, "pizza")
    assert "is not Chinese" in foreign.remarks[0] and foreign.dish is None
    assert any("cut before" in remark for remark in dish_names.take_order(clip, "番茄" * 30).remarks)
    with pytest.raises(UserError, match="empty"):
        dish_names.take_order(clip, "  ")


def test_nearest_dishes_are_nearest():
    clip = menu_clip()
    cosines = {dish: float(F.normalize(clip.encode_text(names).mean(0), dim=0) @ clip.encode_text(["炒蛋"])[0])
               for dish, names in dish_names.LEARNED.items()}  # fmt: skip
    best = sorted(cosines, key=cosines.get, reverse=True)[:3]
    assert [dish for dish, _ in dish_names.nearest_dishes(clip, "炒蛋")] == best


# --------------------------------------------------------------------------------------------------------- finding things


def test_ranks_against_sorting():
    queries, keys, right = unit(40, 6), unit(9, 6, seed=1), torch.arange(40) % 9
    places = [sorted(range(9), key=lambda k: -float(queries[i] @ keys[k])).index(int(right[i])) for i in range(40)]
    assert retrieval.ranks(queries, keys, right).tolist() == places
    result = retrieval.found(queries, keys, right, times=200)
    assert result.top1.value == pytest.approx(np.mean([p < 1 for p in places])) and result.top5.value == pytest.approx(np.mean([p < 5 for p in places]))
    assert result.top1.low < result.top1.value < result.top1.high and (result.queries, result.choices) == (40, 9)
    same = torch.ones(1, 6) / 6**0.5
    assert retrieval.ranks(same, same.expand(4, -1), torch.tensor([2])).tolist() == [3]  # who says the same of all has named nothing


def test_the_smaller_question():
    queries, keys, right = unit(20, 6), unit(10, 6, seed=1), torch.arange(20) % 10
    only = [7, 2, 4]
    some, few, answers = retrieval.among(queries, keys, right, only)
    assert torch.equal(few, keys[only]) and [only[a] for a in answers] == [k for k in right.tolist() if k in only]
    assert torch.equal(some, queries[[i for i in range(20) if i % 10 in only]])
    assert len(retrieval.FORTY) == 40


def test_centres():
    vectors = unit(6, 4)
    centre = retrieval.centres(vectors, torch.tensor([0, 2, 0, 0, 2, 0]), 3)
    torch.testing.assert_close(centre[2], F.normalize(vectors[1] + vectors[4], dim=0))
    assert torch.equal(centre[1], torch.zeros(4))


# -------------------------------------------------------------------------------------------------------------- training


def test_a_run_leaves_everything(run):
    for name in ("config.json", "metrics.csv", "found.png", WEIGHTS, "model/config.json", "model/cn_clip.json", "model/vocab.txt"):
        assert (run / name).exists(), name
    with open(run / "quality.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == fit_clip.COLUMNS and rows[-1]["step"] == "6" and 0 <= float(rows[-1]["pictures_top1"]) <= 1
    assert Shape(**json.loads((run / "model/cn_clip.json").read_text())).vision_width == 32
    with Image.open(run / "found.png") as picture:
        assert picture.width > 8 * 32


@pytest.mark.parametrize("door", clip_zh.DOORS)
def test_a_run_is_opened(run, door):
    clip = clip_zh.load_clip(run, door)
    assert (clip.backend, clip.dim, clip.size) == (door, 16, 32)
    torch.testing.assert_close(clip.encode_text(["番茄炒蛋"]).norm(dim=1), torch.ones(1))
    assert clip.unknown("土鸡蛋炒番茄") == [] and clip.unknown("龘") == ["龘"]


def test_a_resumed_run_is_the_same_run(run, tmp_path):
    """Thrown back to its checkpoint of step 3, it ends with the same bytes."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000006.pt").unlink()
    shutil.rmtree(again / "model")
    run_main(TRAIN, "--resume", again, "--device", "cpu")
    for name in (WEIGHTS, "model/vocab.txt"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


def test_both_halves_and_the_temperature_learn(run):
    args = train_clip.Args(size=32, patch=16, width=32, layers=1, text_width=32, text_layers=1, dim=16)
    before = fit_clip.new_form(args, tuple((run / "model/vocab.txt").read_text().split())).state
    after = clip_zh.find_form(str(run)).state
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert {"logit_scale", "visual.conv1.weight", "visual.proj", "text_projection", "bert.embeddings.word_embeddings.weight"} <= set(moved)
    assert float(before["logit_scale"]) == pytest.approx(math.log(1 / 0.07)) and len(moved) > 0.9 * len(before)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder of three kinds of picture, with Chinese captions."""
    path, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    rows = []
    for i in range(60):
        name, colour = (("米饭", (230, 230, 220)), ("番茄汤", (210, 60, 40)), ("青菜", (60, 150, 60)))[i % 3]
        pixels = np.clip(np.array(colour) + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": name}, ensure_ascii=False))
    (path / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_pictures_of_ones_own_are_learned(photographs, tmp_path, command_line):
    """From a folder: its captions make the vocabulary, equal captions belong together, and after 80 steps each is told from the rest."""
    code, out, err = command_line(TRAIN, "--data", photographs, *TINY, "--lr", 3e-3, "--steps", 80, "--out", tmp_path / "run")
    assert code == 0, err
    assert "54 pictures of 3 things" in out and "held-out names" not in out
    assert "100.0% are nearest to their own name, of 3" in out
    code, out, err = command_line(EVALUATE, "--clip", tmp_path / "run", "--data", photographs, "--device", "cpu")
    assert code == 0 and "100.0 %" in out and "3 captions" in out, err

    # fine-tuning: it starts where the first run ended, sizes and vocabulary included
    code, out, err = command_line(TRAIN, "--data", photographs, "--start", tmp_path / "run", "--steps", 1, "--lr", 1e-9, "--out", tmp_path / "more",
                                  "--device", "cpu")  # fmt: skip
    assert code == 0, err
    first, second = (clip_zh.find_form(str(tmp_path / name)) for name in ("run", "more"))
    assert second.shape == first.shape and second.words == first.words
    assert max(float((first.state[key] - second.state[key]).abs().max()) for key in first.state) < 1e-4


def test_characters_are_hidden_but_never_the_frame():
    ids = torch.tensor([[2, 9, 8, 7, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0]]).repeat(500, 1)
    hidden = fit_clip.hide(ids, torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)), 0.25, unknown=1, end=3)
    inside = ids > 3
    assert torch.equal(hidden[~inside], ids[~inside])
    assert 0.2 < float((hidden[inside] == 1).float().mean()) < 0.3
    assert torch.equal(hidden[inside & (hidden != 1)], ids[inside & (hidden != 1)])
    assert torch.equal(fit_clip.hide(ids, torch.rand(ids.shape), 0.0, unknown=1, end=3), ids)
    assert set(fit_clip.hide(ids, torch.zeros(ids.shape), 0.5, unknown=100, end=3)[inside].tolist()) == {100}  # its place in the published vocabulary


def test_pictures_are_seen_anew():
    """Each image in its own way, as (seed, step) say; what is in the middle stays in the picture."""
    x = torch.full((64, 3, 32, 32), -1.0)
    x[:, :, 12:20, 12:20] = 1.0
    seen = fit_clip.augment(x, BatchRandom(0, 0))
    assert seen.shape == x.shape and float(seen.min()) >= -1 and float(seen.max()) <= 1
    assert torch.equal(seen, fit_clip.augment(x, BatchRandom(0, 0))) and not torch.equal(seen, fit_clip.augment(x, BatchRandom(0, 1)))
    assert float((seen[0] - seen[1]).abs().max()) > 0.1
    bright = (seen.mean(1) > 0.2).flatten(1).sum(1)
    assert int(bright.min()) > 30 and int(bright.max()) < 200  # 64 pixels, nearer or further
    plain = torch.zeros(64, 3, 32, 32)
    assert 0.05 < float((fit_clip.augment(plain, BatchRandom(0, 0))).abs().amax((1, 2, 3)).mean()) < 0.3  # light and tint alone


def test_a_step_may_look_at_some_patches_only(form, images):
    """All of them, in any order, are what transformers sees; of half of them each image has its own."""
    clip = clip_zh.chinese_clip(form)
    net, pixels = fit_clip.Pairs(clip), clip_zh.look(images, 32)
    whole = clip.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(net.see(pixels, None), whole)
    every = torch.stack([torch.randperm(16) for _ in range(5)])
    torch.testing.assert_close(net.see(pixels, every), whole, atol=1e-5, rtol=1e-5)
    half = fit_clip.some_patches(BatchRandom(0, 0), 5, form.shape, 0.5)
    assert half.shape == (5, 8) and all(len(set(row)) == 8 and max(row) < 16 for row in half.tolist()) and half.unique(dim=0).shape[0] == 5
    only = pixels.clone().unfold(2, 8, 8).unfold(3, 8, 8).reshape(5, 3, 16, 8, 8)  # what is not looked at changes nothing
    hidden = torch.ones(5, 16).scatter_(1, half, 0.0).bool()
    only[hidden[:, None].expand(-1, 3, -1)] = 7.0
    other = only.view(5, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(5, 3, 32, 32)
    torch.testing.assert_close(net.see(other, half), net.see(pixels, half))
    assert (net.see(other, None) - whole).abs().max() > 1e-3
    assert fit_clip.some_patches(BatchRandom(0, 0), 5, form.shape, 1.0) is None


def test_each_caption_has_its_turn():
    """A step takes one of a picture's captions at random; the dish says what belongs together."""
    words = clip_zh.words_of(words_for(["甲", "乙"]), 52)
    pictures = Images("x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([5, 6]))
    material = fit_clip.Material(pictures, [("甲", "乙"), ("乙甲", "甲")], {}, pictures)
    paired = fit_clip.Paired(material, words)
    batch = paired.batch(torch.tensor([1, 0] * 100))
    assert batch["ids"].shape == (200, 2, 4) and batch["dish"].tolist() == [6, 5] * 100
    told = []

    def net(pixels, ids, kept):
        assert kept is None
        told.append(ids)
        return torch.eye(200, 300), torch.eye(200, 300), torch.tensor(1.0)

    form = Form(small_shape(words_for(["甲", "乙"])), {}, words_for(["甲", "乙"]), "a test")
    fit_clip.make_loss(train_clip.Args(unknown=0.0), form)(net, batch, BatchRandom(0, 0))
    second = (told[0][1::2] == batch["ids"][1::2, 1, : told[0].shape[1]]).all(1).float().mean()
    assert 0.3 < float(second) < 0.7


def test_drawn_sets_give_chinese_captions_and_no_more_pictures_than_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(fit_clip, "load", lambda *args, **options: drawn.append(load(*args, **options)) or drawn[-1])
    material = fit_clip.gather(train_clip.Args(data="creatures", n=5, held_out=3), 16)
    assert [len(images) for images in drawn] == [len(material.pictures), len(material.test)] == [5, 3]
    assert all(mostly_chinese([caption]) for caption in (*material.pictures.captions, *material.test.captions))


def test_sizes_that_do_not_fit_are_refused_before_pictures_are_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(fit_clip, "gather", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match="must be a multiple of 16"):
        train_clip.main(train_clip.Args(size=60, patch=16, device="cpu", out=tmp_path / "run"))


# -------------------------------------------------------------------------------------------------- checkpoints of cn_clip


def wide(form_words=None) -> Form:
    """With heads of 64, as in every published model: its sizes can be read off its weights."""
    words = words_for()
    shape = small_shape(words, vision_width=64, vision_head_width=64, text_hidden_size=128, text_num_attention_heads=2, text_intermediate_size=96)
    torch.manual_seed(1)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return Form(shape, clip_forms.from_transformers(shaken(net).state_dict()), words, "a test")


def test_a_checkpoint_as_cn_clips_training_writes_it(tmp_path, images):
    """With `module.` before each name and other things in it; no sizes, and the vocabulary beside it."""
    form = wide()
    state = {f"module.{key}": value for key, value in form.state.items()} | {"module.bert.pooler.dense.weight": torch.zeros(2, 2)}
    torch.save({"epoch": 3, "step": 9, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / "epoch3.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(form.words), encoding="utf-8")
    clip = clip_zh.ChineseClip(clip_forms.read_checkpoint(tmp_path / "epoch3.pt"), "transformers")
    assert clip.form.shape == form.shape
    torch.testing.assert_close(clip.encode_image(images), ChineseClip(form, "transformers").encode_image(images))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="without a vocabulary; put the vocab.txt"):
        clip_forms.read_checkpoint(tmp_path / "epoch3.pt")


@pytest.mark.parametrize("layout", ["fp16", "shards", "bin", "bin in fp16"])
def test_layouts_of_folders(layout, form, folder, tmp_path):
    """As save_pretrained of transformers writes them."""
    target = tmp_path / "clip"
    shutil.copytree(folder, target)
    state = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    half = {key: value.half() for key, value in state.items()}
    if layout == "fp16":
        save_file(half, target / "model.fp16.safetensors")
    elif layout == "shards":
        parts = [dict(list(state.items())[k::2]) for k in range(2)]
        names = [f"model-0000{k + 1}-of-00002.safetensors" for k in range(2)]
        for name, part in zip(names, parts, strict=True):
            save_file(part, target / name)
        index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        torch.save(half if "fp16" in layout else state, target / "pytorch_model.bin")
    made = clip_zh.find_form(str(target))
    tolerance = 2e-3 if "fp16" in layout else 0
    assert made.state.keys() == form.state.keys()
    assert all(torch.allclose(made.state[key], form.state[key], atol=tolerance, rtol=tolerance) for key in form.state)


def flash(state) -> dict:
    """The names that cn_clip's own function gives to weights for FlashAttention."""
    return convert_state_dict(dict(state))


@pytest.mark.parametrize("layout", ["plain", "flash", "image", "prefixed", "namespace", "half", "compiled", "other key", "no key", "old file", "safetensors"])
def test_layouts_of_checkpoints(layout, tmp_path, command_line):
    """Each becomes a folder that holds the same weights. A result that is not whole is never reported as success."""
    form, out = wide(), tmp_path / "out"
    state = {
        "flash": flash(form.state),
        "image": {key.replace("attn.in_proj_", "attn.Wqkv."): value for key, value in form.state.items()},
        "prefixed": {f"module.{key}": value for key, value in flash(form.state).items()} | {"module.bert.pooler.dense.bias": torch.zeros(8)},
        "half": {key: value.half() for key, value in form.state.items()},
        "compiled": {f"module._orig_mod.{key}": value for key, value in form.state.items()},
    }.get(layout, form.state)
    assert layout != "flash" or (set(state) ^ set(form.state) and not any("in_proj" in key or "query" in key for key in state))
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.98), "params": [0]}]}
    whole = {"epoch": 3, "step": 300, "name": "x", "state_dict": state, "optimizer": optimizer}
    whole |= {"args": argparse.Namespace(lr=1e-5, vision_model="ViT-B-16")} if layout == "namespace" else {}
    whole = {"other key": {"model": state, "epoch": 1}, "no key": state}.get(layout, whole)
    file = tmp_path / ("epoch_latest.safetensors" if layout == "safetensors" else "epoch_latest.pt")
    if layout == "safetensors":
        save_file(state, file)
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=layout != "old file")
    (tmp_path / "vocab.txt").write_text("\n".join(form.words), encoding="utf-8")
    code, said, err = command_line(CONVERT, "--clip", file, "--out", out)
    assert code == 0 and "cn_clip and transformers differ by" in said, err
    made = clip_zh.find_form(str(out))
    assert made.shape == form.shape and made.words == form.words and made.state.keys() == form.state.keys()
    tolerance = 2e-3 if layout == "half" else 0
    assert all(torch.allclose(made.state[key], form.state[key], atol=tolerance, rtol=tolerance) for key in form.state)


def broken(state, change) -> dict:
    state = dict(state)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("visual.transformer.resblocks.1.attn.in_proj_bias"), "another architecture: .*bias is missing"),
        (lambda s: s.update({"visual.extra": torch.zeros(1)}), "another architecture: visual.extra is unknown"),
        (lambda s: s.update({"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(5, 64)}), "another architecture"),
        (lambda s: s.update({"visual.transformer.resblocks.0.attn.Wqkv.weight": torch.zeros(()), "bert.encoder.layer.0.attention.self.Wqkv.bias": torch.zeros(1)}),
         "wrong number of dimensions|another architecture"),
        (lambda s: s.update({"visual.conv1.weight": torch.zeros(4)}), "holds no Chinese CLIP: visual.conv1.weight or another"),
        (lambda s: s["visual.proj"].__setitem__((0, 0), float("nan")), "holds infinite numbers or NaN, first in visual.proj"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_not_converted(change, sentence, tmp_path, command_line):
    form = wide()
    torch.save({"state_dict": broken({key: value.clone() for key, value in form.state.items()}, change)}, tmp_path / "x.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(form.words), encoding="utf-8")
    for out in (tmp_path / "out", tmp_path / "out.pt"):
        code, said, err = command_line(CONVERT, "--clip", tmp_path / "x.pt", "--out", out)
        assert code == 2 and said == "" and re.search(sentence, err) and "Traceback" not in err and not out.exists(), err


def test_heads_that_the_weights_do_not_tell(form, tmp_path, recwarn):
    """The sizes of a model that was never published may be in a file beside it; without one, a warning says what is assumed."""
    torch.save({"state_dict": form.state}, tmp_path / "x.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(form.words), encoding="utf-8")
    assert clip_forms.read_checkpoint(tmp_path / "x.pt").shape.text_num_attention_heads == 1 != form.shape.text_num_attention_heads
    assert "does not say how wide its attention heads are" in str(recwarn.pop().message)
    (tmp_path / "cn_clip.json").write_text(json.dumps(dataclasses.asdict(form.shape)))
    assert clip_forms.read_checkpoint(tmp_path / "x.pt").shape == form.shape and not recwarn
    (tmp_path / "cn_clip.json").write_text('{"embed_dim": "many"}')
    assert clip_forms.read_checkpoint(tmp_path / "x.pt").shape != form.shape


def test_the_vocabulary_that_fits_is_taken(tmp_path):
    """The one beside the checkpoint before the one that cn_clip brings along, whatever its line ends; one that does not fit is refused."""
    form = wide()
    torch.save({"state_dict": form.state}, tmp_path / "x.pt")
    for text in ("\n".join(form.words), "\r\n".join(form.words) + "\r\n\r\n", "\ufeff" + "\n".join(form.words) + "\n"):
        (tmp_path / "vocab.txt").write_bytes(text.encode())
        assert clip_zh.find_form(str(tmp_path / "x.pt")).words == form.words
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(UserError, match="has 2 tokens, but its weights are for .*; put the vocab.txt"):
        clip_zh.find_form(str(tmp_path / "x.pt"))
    (tmp_path / "vocab.txt").write_bytes("番茄".encode("gbk"))
    with pytest.raises(UserError, match="vocab.txt cannot be read as UTF-8 text"):
        clip_zh.find_form(str(tmp_path / "x.pt"))


def test_a_published_name_is_taken_from_cn_clips_cache(tmp_path, monkeypatch):
    form = wide()
    monkeypatch.setattr(clip_zh, "CACHE", tmp_path)
    monkeypatch.setattr(clip_zh, "package_words", lambda: None)
    torch.save({"state_dict": form.state}, tmp_path / "clip_cn_vit-b-16.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(form.words), encoding="utf-8")
    clip = clip_zh.load_clip("ViT-B-16", "transformers")
    assert torch.equal(clip.encode_text(["米饭"]), ChineseClip(form, "transformers").encode_text(["米饭"]))


def test_a_published_name_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_zh, "CACHE", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"ViT-B-16 needs clip_cn_vit-b-16.pt, which is not in .* did not answer .* --clip pretrained"):
        clip_zh.load_clip("ViT-B-16")


def test_without_cn_clip_its_installation_is_named(folder, monkeypatch):
    """Before anything is read; the second backend computes all the same."""
    monkeypatch.setattr(clip_zh, "installed", lambda: False)
    for name in (folder, "ViT-B-16", "no-such-name"):
        with pytest.raises(UserError, match=f"cn_clip is not installed; install it with {clip_zh.INSTALL}, or use --backend transformers"):
            clip_zh.load_clip(name)
    assert clip_zh.load_clip(folder, "transformers").encode_text(["米饭"]).shape == (1, 24)
    assert (ROOT / clip_zh.INSTALL.split()[-1]).exists()


def test_a_cn_clip_that_cannot_be_imported(form, monkeypatch):
    """As beside version 2 of flash_attn, where cn_clip looks for a module of version 1."""
    monkeypatch.setitem(sys.modules, "cn_clip.clip.model", None)
    with pytest.raises(UserError, match=r"cn_clip is installed, but cannot be imported \(.*cn_clip.clip.model.*\); use --backend transformers"):
        ChineseClip(form)


def test_runs_from_before_open_with_the_default(folder):
    """Their config.json says "auto"."""
    assert clip_zh.load_clip(folder, "auto").backend == "cn_clip"


def test_wrong_files_are_refused(form, folder, tmp_path):
    """Each with one sentence that names what is wrong."""

    def refused(name, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence) as caught:
            clip_zh.load_clip(name, "transformers")
        assert "\n" not in str(caught.value)

    def copied(**changes) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        for key, value in changes.items():
            part, _, inner = key.partition("__")
            config[part] = config[part] | {inner: value} if inner else value
        (target / "config.json").write_text(json.dumps(config))
        return target

    def pickled(what) -> Path:
        path = tmp_path / f"file{len(list(tmp_path.iterdir()))}.pt"
        torch.save(what, path)
        return path

    refused("RN50", "RN50 is a ResNet")
    refused("no-such-name", "there is no CLIP 'no-such-name'; give a folder, .* pretrained, ViT-B-16")
    refused(tmp_path / "nowhere", "there is no CLIP")
    refused(tmp_path, "holds no Chinese CLIP: config.json")
    refused(tmp_path / "gone.pt", "there is no checkpoint")
    (tmp_path / "clip.ckpt").write_bytes(b"PK")
    refused(tmp_path / "clip.ckpt", "is a file, and its name does not end in .pt, .pth or .safetensors")
    refused(copied(model_type="clip"), "of kind 'clip'")
    refused(copied(projection_dim=48), "weights of another architecture: .*projection.* there, .* here")
    refused(copied(vision_config__intermediate_size=100), "intermediate_size 100 in its vision_config; .* has 256")
    refused(copied(vision_config__num_hidden_layers=10**8), "tensors cannot be 100,000,000 layers")
    refused(copied(vision_config__intermediate_size=4 * 10**6, vision_config__hidden_size=10**6, vision_config__num_attention_heads=1),
            "weights of another architecture")  # fmt: skip
    refused(copied(vision_config__hidden_act="gelu"), "hidden_act gelu in its vision_config; .* quick_gelu")
    refused(copied(text_config__num_attention_heads=5), "describes no Chinese CLIP|multiple of 5")
    refused(copied(vision_config__num_attention_heads=0), "num_attention_heads 0 in its vision_config|describes no Chinese CLIP|must be a multiple")
    refused(copied(text_config__hidden_act="quick_gelu"), "text_hidden_act is 'quick_gelu'; cn_clip has gelu, gelu_new, relu, swish")
    for sizes in ({"text_hidden_act": 3}, {"vision_layers": 2.5}, {"vision_width": None}, {"vocab_size": "many"}):  # then the weights are asked
        own = {"config": dataclasses.asdict(form.shape) | sizes, "vocab": list(form.words)}
        assert clip_zh.find_form(str(pickled({"state_dict": form.state} | own))).shape == clip_forms.shape_of_state(form.state, "a test")
    own = {"config": dataclasses.asdict(form.shape) | {"vision_layers": -1}, "vocab": list(form.words)}
    refused(pickled({"state_dict": form.state} | own), "another architecture")
    refused(pickled({"state_dict": form.state, "config": dataclasses.asdict(form.shape), "vocab": [[1]] * len(form.words)}), "is no list of texts")
    broken = copied()
    (broken / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    refused(broken, f"has 4 tokens, but its weights are for {form.shape.vocab_size}")
    refused(pickled({"state_dict": {"visual.layer1.0.conv1.weight": torch.zeros(1)}}), "ResNet")
    refused(pickled({"state_dict": {"layer.weight": torch.zeros(1)}}), "holds no Chinese CLIP: among its 1 weights")
    refused(pickled([1, 2]), "holds no state dict")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "cannot be read as a checkpoint of weights: it is damaged, or torch.save has not written it")
    less = dict(wide().state)
    del less["visual.transformer.resblocks.1.ln_2.bias"]
    refused(pickled({"state_dict": less, "vocab": list(form.words)}), "another architecture: .*layer_norm2.bias is missing")
    with pytest.raises(UserError, match="unknown backend 'back'"):
        clip_zh.load_clip(folder, "back")


# ------------------------------------------------------------------------------------------------------------- commands


def test_convert_there_and_back(run, tmp_path, command_line):
    code, out, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "clip.pt")
    assert code == 0 and "clip.pt" in out, err
    assert "cn_clip and transformers differ by" in out
    code, _, err = command_line(CONVERT, "--clip", tmp_path / "clip.pt", "--out", tmp_path / "folder")
    assert code == 0, err
    assert (tmp_path / "folder/model.safetensors").read_bytes() == (run / WEIGHTS).read_bytes()
    code, _, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "half", "--half")
    assert code == 0 and (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * (run / WEIGHTS).stat().st_size, err
    whole, half = (clip_zh.load_clip(path, "transformers").encode_text(["番茄炒蛋"]) for path in (run, tmp_path / "half"))
    torch.testing.assert_close(whole, half, atol=2e-3, rtol=0)
    code, _, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "clip.pt")
    assert code == 2 and "exists already" in err
    code, _, err = command_line(CONVERT, "--clip", run)
    assert code == 2 and "say where" in err
    code, _, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "clip.safetensors")
    assert code == 2 and "neither a folder for transformers nor a checkpoint for cn_clip" in err
    code, _, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "half.pt", "--half")
    assert code == 2 and "--half is for a folder" in err


def test_convert_without_cn_clip(run, tmp_path, command_line, monkeypatch):
    """The weights are still loaded in transformers before they are written, and it is said what was not done."""
    monkeypatch.setattr(clip_zh, "installed", lambda: False)
    code, out, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "clip.pt")
    assert code == 0 and "the two libraries were not compared" in out and clip_zh.INSTALL in out, err


def test_convert_writes_nothing_where_the_libraries_differ(run, tmp_path, command_line, monkeypatch):
    real = clip_zh.CnClip.text
    monkeypatch.setattr(clip_zh.CnClip, "text", lambda self, ids: real(self, ids) + 0.1)
    code, _, err = command_line(CONVERT, "--clip", run, "--out", tmp_path / "clip.pt")
    assert code == 2 and "nothing was written" in err and not (tmp_path / "clip.pt").exists()


def test_numbers_too_large_for_half_precision(form, tmp_path):
    large = form._replace(state=form.state | {"text_projection": form.state["text_projection"] + 1e5})
    with pytest.raises(UserError, match="text_projection.weight of a test holds numbers too large for half precision"):
        clip_forms.save_folder(tmp_path / "half", large, torch.float16)
    assert not (tmp_path / "half").exists()


def test_evaluate(run, tmp_path, command_line):
    code, out, err = command_line(EVALUATE, "--clip", run, "--n", 30, "--out", tmp_path / "figures.json", "--backend", "transformers")
    assert code == 0, err
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert list(results) == [f"{what}, {n} dishes" for what in ("pictures of test", "pictures of heldout", "learned names", "held-out names")
                             for n in (80, 40)]  # fmt: skip
    assert results["held-out names, 80 dishes"]["queries"] == len(dish_names.HELD_OUT)
    assert results["pictures of test, 80 dishes"]["queries"] == 30 > results["pictures of test, 40 dishes"]["queries"]
    assert all(name in out for name in results)
    code, out, err = command_line(EVALUATE, "--clip", run, "--ask", "土鸡蛋炒番茄", "龘龘")
    assert code == 0 and out.count("(") >= 6 and "best effort" in out and "never read 龘" in out, err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch-size", 1], "--batch-size must be at least 2, not 1; a picture is compared with the names of the others"),
        (["--seed", -1], "--seed must be 0 or more"),
        (["--unknown", 1], "--unknown must be"),
        (["--keep", 0], "--keep must be above 0"),
        (["--temperature", 0.001], "--temperature must be at least 0.01"),
        (["--width", 48], "--width must be a multiple of 32"),
        (["--size", 60, "--patch", 16], "must be a multiple of 16"),
        (["--start", "pretrained", "--layers", 2], "--start keeps the sizes"),
        (["--start", "nothing-there"], "there is no CLIP 'nothing-there'"),
        (["--steps", 1, "--minutes", 1], "not both"),
        (["--data", "no-such-folder"], "unknown data"),
        (["--resume", "no-such-run"], "config.json is missing"),
    ],
)
def test_bad_input(flags, sentence, tmp_path, command_line):
    code, _, err = command_line(TRAIN, "--n", 2, "--held-out", 2, "--device", "cpu", *(flags if "--resume" in flags else [*flags, "--out", tmp_path / "run"]))
    assert code == 2 and sentence in err and "Traceback" not in err

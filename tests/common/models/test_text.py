"""Text: the transformer against CLIP's own, the tokenizer against CLIP's own, encoders trained, frozen and cached."""

import copy
import hashlib
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.models.text import hub
from common.models.text.cached import CachedTextEncoder
from common.models.text.encoders import CLIPTextEncoder, SmallText, load_text, save_text, small_text
from common.models.text.tokenizer import BOS, END, EOS, load_tokenizer, train_tokenizer
from common.models.text.transformer import TextConfig, TextTransformer, text_from_transformers, text_to_transformers
from helpers.programs import run_program

CAPTIONS = [
    "a red round creature with wings and a long tail, fire type",
    "a blue square creature with horns, water type",
    "a small green creature with a long tail and round ears, grass type",
    "a red creature with horns and no wings, it's sleepy",
    "a blue round creature with wings and small ears",
    "a green creature with horns, fire type",
    "一只红色的圆滚滚的小怪兽，长着翅膀和长尾巴，火属性",
    "一只蓝色的方方的小怪兽，长着角，水属性",
    "一只绿色的小怪兽，长着长尾巴和圆耳朵，草属性",
    "一只红色的小怪兽，长着角，没有翅膀",
    "一只蓝色的圆滚滚的小怪兽，长着翅膀和小耳朵",
    "一只绿色的小怪兽，有角，火属性",
]
STRANGE = [
    "",
    "  ",
    "A  RED\tcreature\n with   Wings!!",
    "pokémon café ＡＢＣ",
    "🐉 dragon №7 1234",
    "红creature色 the blue一只",
    "don't it's we'll",
    "<|endoftext|> red",
    "龘龘 zebra",
    "…—“quoted”",
    "e\u0301 combining",
    "한국어 かな",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, length=40)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return shaken(small_text(CAPTIONS, dim=16, layers=2, heads=2, length=40))


def shaken(module):
    """The same network with every weight, biases and norms included, moved by chance."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def words(tokenizer, caption):
    return [token for token in tokenizer.backend.encode(caption).tokens if token not in (BOS, EOS)]


# --------------------------------------------------------------------------------------------------------- transformer

CONFIGS = [
    TextConfig(
        vocab=90, length=11, dim=16, layers=1, heads=1, hidden=24, activation="quick_gelu", bos=88, eos=89, pad=89
    ),
    TextConfig(
        vocab=50, length=7, dim=24, layers=3, heads=4, hidden=96, activation="gelu", eps=1e-3, bos=3, eos=2, pad=0
    ),
    TextConfig(vocab=70, length=16, dim=32, layers=2, heads=8, hidden=40, activation="gelu", bos=None, eos=69, pad=1),
]


@pytest.mark.parametrize("cfg", CONFIGS)
def test_transformer_is_clips(cfg):
    torch.manual_seed(1)
    ids = torch.randint(0, cfg.vocab, (3, cfg.length))
    ours = shaken(TextTransformer(cfg))
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_to_transformers(cfg))).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours(ids).std() > 0.3
    torch.testing.assert_close(ours(ids), theirs(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(ids[:, :5]), theirs(input_ids=ids[:, :5]).last_hidden_state, atol=1e-5, rtol=0)

    shaken(theirs)
    back = TextTransformer(
        text_from_transformers(theirs.config.to_diff_dict() | {"model_type": "clip_text_model"})
    ).eval()
    assert back.cfg == cfg
    back.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(back(ids), theirs(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)


def test_words_do_not_see_the_padding_but_the_padding_sees_the_words():
    torch.manual_seed(2)
    net = shaken(TextTransformer(CONFIGS[0]))
    ids = torch.full((1, 11), 89)
    ids[0, :4] = torch.tensor([88, 5, 6, 89])
    short, other = net(ids[:, :4]), ids.clone()
    torch.testing.assert_close(net(ids)[:, :4], short)
    other[0, 1] = 7
    assert (net(other) - net(ids))[0, 4:].abs().amax(dim=1).min() > 1e-3
    torch.testing.assert_close(net(other)[:, 0], net(ids)[:, 0])


def test_untrained_embeddings_tell_tokens_apart():
    torch.manual_seed(3)
    net = TextTransformer(TextConfig(vocab=500, length=32, dim=64, layers=2, heads=4, hidden=256))
    ids = torch.randint(0, 500, (8, 32))
    table = torch.nn.functional.normalize(net.embeddings.token_embedding.weight, dim=1)
    nearest = (net(ids) @ table.T).argmax(dim=-1)
    assert (nearest == ids).float().mean() > 0.9
    same = torch.nn.functional.normalize(net(torch.full((1, 32), 7))[0], dim=1)  # one token at every place
    assert (same @ same.T).mean() > 0.7  # the place matters less than the token


def test_words_stay_apart_when_all_are_pulled_one_way():
    """A hundred steps of AdamW at the course's rate:
    embeddings that begin small (0.02) end with a mean cosine of 0.5 between words.
    """
    torch.manual_seed(0)
    net = TextTransformer(TextConfig(vocab=40, length=8, dim=32, layers=2, heads=2, hidden=64))
    ids, direction = torch.randint(0, 40, (64, 8)), torch.randn(32)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (-(net(ids) @ direction).mean()).backward()
        optimizer.step()
    table = torch.nn.functional.normalize(net.embeddings.token_embedding.weight.detach(), dim=1)
    assert (table @ table.T).mean() < 0.3


def test_settings_left_out_mean_what_transformers_means():
    assert text_from_transformers({"model_type": "clip_text_model"}) == TextConfig()
    theirs = transformers.CLIPTextConfig().to_dict()
    assert (
        text_from_transformers({key: theirs[key] for key in theirs if key in text_to_transformers(TextConfig())})
        == TextConfig()
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"attention_dropout": 0.1},
        {"hidden_act": "relu"},
        {"model_type": "bert"},
        {"use_attention_mask": True},
        {"rope_theta": 10000},
    ],
)
def test_unsupported_settings_are_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        text_from_transformers(text_to_transformers(TextConfig()) | setting)


def test_refusals_of_shape(tokenizer):
    with pytest.raises(UserError, match="try a width of 8 or 12"):
        TextTransformer(TextConfig(dim=10, heads=4, layers=1))
    with pytest.raises(UserError, match="tokens"):
        SmallText(
            tokenizer, TextTransformer(TextConfig(vocab=tokenizer.size - 1, length=40, dim=8, heads=1, layers=1))
        )
    with pytest.raises(UserError, match="a length of 40, but the text encoder has .* a length of 39"):
        SmallText(tokenizer, TextTransformer(TextConfig(vocab=tokenizer.size, length=39, dim=8, heads=1, layers=1)))


# ----------------------------------------------------------------------------------------------------------- tokenizer


def test_ids(tokenizer):
    ids = tokenizer(["a red creature", ""])
    bos, eos = tokenizer.id(BOS), tokenizer.id(EOS)
    assert ids.shape == (2, 40) and ids.dtype == torch.int64
    assert ids[1].tolist() == [bos] + [eos] * 39
    assert ids[0].tolist() == [bos, *(tokenizer.id(w + END) for w in ("a", "red", "creature"))] + [eos] * 36
    assert eos == tokenizer.size - 1  # the largest id: where CLIP looks for the end
    assert tokenizer([]).shape == (0, 40)
    with pytest.raises(TypeError, match="list"):
        tokenizer("a red creature")


def test_tokens_are_words_and_chinese_characters(tokenizer):
    assert words(tokenizer, "A red, round Creature") == ["a</w>", "red</w>", ",</w>", "round</w>", "creature</w>"]
    assert len(words(tokenizer, "一只红色的小怪兽，长着长尾巴")) == 14
    red = words(tokenizer, "红色")[0]
    assert words(tokenizer, "一只红色的小怪兽")[2] == red == words(tokenizer, "绿红色")[1]  # wherever it stands
    assert words(tokenizer, "绿红") == [words(tokenizer, "绿色")[0], red + END]


def test_the_same_captions_give_the_same_tokenizer(tokenizer):
    again = train_tokenizer(CAPTIONS[::-1], length=40)
    assert again.backend.to_str() == tokenizer.backend.to_str()
    assert train_tokenizer(CAPTIONS + ["a zebra", "zebra"], length=40).size > tokenizer.size


def test_every_process_learns_the_same_tokenizer():
    """Many pairs are equally frequent here; the order of a hash table must not decide which is joined first."""
    code = (
        "import hashlib; from common.data.creatures.dataset import caption; from common.models.text.tokenizer import train_tokenizer; "
        "print(hashlib.sha256(train_tokenizer([caption(0, 'train', i) for i in range(24)]).backend.to_str().encode()).hexdigest())"
    )
    assert len({run_program("-c", code).stdout for _ in range(3)}) == 1


def test_size_bounds_the_vocabulary():
    small = train_tokenizer(CAPTIONS, size=300)
    assert small.size < train_tokenizer(CAPTIONS).size
    assert small.unknown("a red creature") and not train_tokenizer(CAPTIONS).unknown("a red creature")


def test_unknown_words_still_work(tokenizer):
    assert tokenizer.unknown("a ZEBRA with red wings, zebra 7!") == ["ZEBRA", "zebra"]
    assert tokenizer.unknown("一只红色的龙creature") == ["龙"]
    assert tokenizer.unknown("a red round creature，一只蓝色的") == []
    ids = tokenizer(["a zebra", "龙"])
    assert ids.max() < tokenizer.size and (ids != tokenizer.id(EOS)).sum() > 6


def test_a_long_prompt_is_cut(tokenizer):
    fits, long = "red " * 37 + "tail", "red " * 37 + "tail blue wings"
    assert tokenizer.rest(fits) == "" and tokenizer.rest(long) == "blue wings"
    assert tokenizer([long])[0].tolist() == tokenizer([fits])[0].tolist()
    assert tokenizer([long])[0, -1] == tokenizer.id(EOS)
    assert tokenizer.rest("红" * 38 + "龙色") == "龙色"


def test_remarks(tokenizer):
    assert tokenizer.remarks("a red creature") == []
    assert "unconditional" in tokenizer.remarks(" ")[0]
    assert "unknown words: zebra, 龙" in tokenizer.remarks("red zebra 龙")[0]
    assert tokenizer.remarks("red " * 38 + "tail")[0].endswith("more than 40 tokens and is cut before 'tail'")
    assert len(tokenizer.remarks("zebra " * 40)) == 2


def test_transformers_opens_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    texts = CAPTIONS + STRANGE + ["red " * 60]
    for loader in (transformers.CLIPTokenizer, transformers.AutoTokenizer):
        theirs = loader.from_pretrained(tmp_path / "tokenizer")
        assert type(theirs) is transformers.CLIPTokenizer and theirs.model_max_length == 40
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == tuple(
            tokenizer.id(t) for t in (BOS, EOS, EOS)
        )
        ids = theirs(texts, padding="max_length", truncation=True, max_length=40, return_tensors="pt").input_ids
        assert torch.equal(ids, tokenizer(texts))
    theirs.save_pretrained(tmp_path / "one_file")
    assert not (tmp_path / "one_file" / "merges.txt").exists()
    for folder in ("tokenizer", "one_file"):
        ours = load_tokenizer(tmp_path / folder)
        assert torch.equal(ours(texts), tokenizer(texts)) and ours.unknown("a zebra") == ["zebra"]
    assert load_tokenizer(tmp_path / "tokenizer", longest=12)(CAPTIONS).shape == (12, 12)


def test_another_padding_is_kept(tokenizer, tmp_path):
    """Stable Diffusion 2 pads with '!'."""
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for pad in ("!", {"content": "!", "__type": "AddedToken"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": pad}))
        ours = load_tokenizer(tmp_path)
        assert ours(["red"])[0].tolist() == [ours.id(BOS), ours.id("red</w>"), ours.id(EOS)] + [ours.id("!")] * 37
    ours.save(tmp_path / "again")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert theirs(["red"], padding="max_length", max_length=40).input_ids == ours(["red"]).tolist()


def test_damaged_tokenizers_are_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    settings = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(settings.replace("CLIPTokenizer", "T5Tokenizer"))
    with pytest.raises(UserError, match="T5Tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings.replace(f'"pad_token": "{EOS}"', '"pad_token": "<pad>"'))
    with pytest.raises(UserError, match="<pad>"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnot amerge\n")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="merges.txt"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------------- trained by us


def test_small_text_is_trained(encoder):
    y = encoder(CAPTIONS)
    assert y.shape == (12, 40, 16) and (encoder.dim, encoder.length) == (16, 40)
    assert torch.equal(encoder(encoder.token_ids(CAPTIONS)), y)
    y[:, 3].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert all(key.startswith("transformer.") for key in encoder.state_dict())
    twin = copy.deepcopy(encoder)  # as for averaged weights
    assert torch.equal(twin(["a red creature"]), encoder(["a red creature"]))
    cfg = encoder.transformer.cfg
    assert (cfg.vocab, cfg.bos, cfg.eos, cfg.pad) == (
        encoder.tokenizer.size,
        cfg.vocab - 2,
        cfg.vocab - 1,
        cfg.vocab - 1,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_opens_the_folder(encoder, tmp_path, dtype):
    save_text(tmp_path, encoder, dtype)
    assert (
        load_file(tmp_path / "text_encoder" / "model.safetensors")["text_model.final_layer_norm.weight"].dtype == dtype
    )
    theirs, found = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder", output_loading_info=True)
    tokens = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert not found["missing_keys"] and not found["unexpected_keys"] and theirs.dtype == torch.float32
    ids = tokens(CAPTIONS, padding="max_length", truncation=True, max_length=40, return_tensors="pt").input_ids
    ours = load_text(tmp_path)
    assert ours.transformer.cfg == encoder.transformer.cfg and not ours.training
    assert torch.equal(ids, ours.token_ids(CAPTIONS)) and torch.equal(ids, encoder.token_ids(CAPTIONS))
    out = theirs(input_ids=ids)
    torch.testing.assert_close(ours(CAPTIONS), out.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        ours(CAPTIONS), encoder(CAPTIONS), atol=1e-6 if dtype == torch.float32 else 3e-2, rtol=0
    )
    # transformers finds the end of each caption with the ids we wrote
    end = (ids == tokens.eos_token_id).int().argmax(dim=1)
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state[torch.arange(12), end])


def test_folders_of_others_load(encoder, tmp_path):
    """What transformers writes (no prefix), and what old releases wrote (a table of positions among the weights)."""
    save_text(tmp_path / "a", encoder)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_to_transformers(encoder.transformer.cfg)))
    theirs.load_state_dict(encoder.transformer.state_dict())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    theirs.save_pretrained(tmp_path / "b" / "text_encoder")
    assert "final_layer_norm.weight" in load_file(tmp_path / "b" / "text_encoder" / "model.safetensors")
    assert torch.equal(load_text(tmp_path / "b")(CAPTIONS), load_text(tmp_path / "a")(CAPTIONS))
    path = tmp_path / "a" / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": torch.arange(40)[None]}, path)
    assert torch.equal(load_text(tmp_path / "a")(CAPTIONS), load_text(tmp_path / "b")(CAPTIONS))


def test_damaged_folders_are_refused(encoder, tmp_path):
    with pytest.raises(UserError, match="no text encoder"):
        load_text(tmp_path)
    save_text(tmp_path, encoder)
    path = tmp_path / "text_encoder" / "model.safetensors"
    state = load_file(path)
    save_file({key: value for key, value in state.items() if "fc1.bias" not in key}, path)
    with pytest.raises(UserError, match="fc1.bias"):
        load_text(tmp_path)
    save_file(state | {"text_projection.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="text_projection"):
        load_text(tmp_path)
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="damaged"):
        load_text(tmp_path)


# -------------------------------------------------------------------------------------------------------------- frozen


@pytest.fixture
def clip_folder(encoder, tmp_path):
    """A diffusers-like folder with a text encoder and a tokenizer."""
    save_text(tmp_path / "clip", encoder)
    return tmp_path / "clip"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An empty cache of the hub, and a hub that does not answer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def test_clip_from_a_diffusers_folder(encoder, clip_folder):
    clip = CLIPTextEncoder(str(clip_folder)).train()
    assert (clip.dim, clip.length) == (16, 40) and not clip.network.training
    assert not any(p.requires_grad for p in clip.parameters()) and not clip(["red"]).requires_grad
    assert torch.equal(clip.token_ids(CAPTIONS + STRANGE), encoder.token_ids(CAPTIONS + STRANGE))
    torch.testing.assert_close(clip(CAPTIONS), encoder(CAPTIONS), atol=1e-5, rtol=0)
    assert torch.equal(clip(clip.token_ids(CAPTIONS)), clip(CAPTIONS))
    assert clip.tokenizer.remarks("a zebra")[0].startswith("unknown words: zebra")
    assert CLIPTextEncoder(str(clip_folder), length=12)(CAPTIONS).shape == (12, 12, 16)


def test_clip_from_a_whole_clip_model(encoder, clip_folder, tmp_path):
    torch.manual_seed(4)
    text = text_to_transformers(encoder.transformer.cfg)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    whole.save_pretrained(tmp_path / "whole")
    shutil.copytree(clip_folder / "tokenizer", tmp_path / "whole", dirs_exist_ok=True)
    clip = CLIPTextEncoder(str(tmp_path / "whole"))
    ids = encoder.token_ids(CAPTIONS)
    torch.testing.assert_close(clip(CAPTIONS), whole.eval().text_model(input_ids=ids).last_hidden_state)


@pytest.fixture
def chinese_folder(tmp_path):
    """A small Chinese CLIP whose vocabulary is characters."""
    torch.manual_seed(5)
    folder = tmp_path / "chinese"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(CAPTIONS[6:]))), "red"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    text = {
        "vocab_size": len(vocab),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    model = transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    shaken(model).save_pretrained(folder)
    return folder


def test_chinese_clip(chinese_folder, tmp_path):
    clip = CLIPTextEncoder(str(chinese_folder))
    assert (clip.dim, clip.length) == (16, 52)
    theirs = transformers.ChineseCLIPModel.from_pretrained(chinese_folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(chinese_folder)
    inputs = tokens(CAPTIONS[6:], padding="max_length", max_length=52, return_tensors="pt")
    assert torch.equal(clip.token_ids(CAPTIONS[6:]), inputs.input_ids)
    assert clip(CAPTIONS[6:]).std() > 0.1
    torch.testing.assert_close(clip(CAPTIONS[6:]), theirs.text_model(**inputs).last_hidden_state)
    short = CLIPTextEncoder(str(chinese_folder), length=30)(CAPTIONS[6:7])
    end = len(CAPTIONS[6]) + 2
    torch.testing.assert_close(clip(CAPTIONS[6:7])[:, :end], short[:, :end])  # the padding is hidden
    assert clip.tokenizer.unknown("红色的龙 red zebra") == ["龙", "zebra"]

    save_text(tmp_path / "model", clip)
    again = load_text(tmp_path / "model")
    assert isinstance(again, CLIPTextEncoder)
    torch.testing.assert_close(again(CAPTIONS), clip(CAPTIONS))


def test_a_frozen_clip_is_saved_for_sampling(encoder, clip_folder, tmp_path):
    save_text(tmp_path / "model", CLIPTextEncoder(str(clip_folder)))
    again = load_text(tmp_path / "model")
    torch.testing.assert_close(again(CAPTIONS + STRANGE), encoder(CAPTIONS + STRANGE), atol=1e-5, rtol=0)


def test_wrong_encoders_are_refused(encoder, clip_folder, tmp_path):
    config = clip_folder / "text_encoder" / "config.json"
    good = config.read_text()
    config.write_text(good.replace("clip_text_model", "t5"))
    with pytest.raises(UserError, match="'t5'"):
        CLIPTextEncoder(str(clip_folder))
    config.write_text(good)
    path = clip_folder / "text_encoder" / "model.safetensors"
    save_file(
        {key: value for key, value in load_file(path).items() if "fc1.bias" not in key},
        path,
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match="fc1.bias"):
        CLIPTextEncoder(str(clip_folder))
    path.unlink()
    with pytest.raises(UserError, match="config.json, model.safetensors"):
        CLIPTextEncoder(str(clip_folder))


# ----------------------------------------------------------------------------------------------------------------- hub


def test_an_unreachable_hub_is_one_sentence(nowhere):
    with pytest.raises(UserError, match=r"some/model.*127\.0\.0\.1:9 did not answer.*local folder.*HF_ENDPOINT"):
        CLIPTextEncoder("some/model")
    for name in ("/nowhere/at/all", "./nowhere", "a/b/c"):
        with pytest.raises(UserError, match="there is no folder"):
            CLIPTextEncoder(name)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        CLIPTextEncoder("not a name!")


def test_the_cache_of_the_hub_comes_first(encoder, clip_folder, nowhere):
    root = nowhere / "models--some--model"
    shutil.copytree(clip_folder, root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    torch.testing.assert_close(CLIPTextEncoder("some/model")(CAPTIONS), encoder(CAPTIONS), atol=1e-5, rtol=0)
    (root / "snapshots" / ("0" * 40) / "text_encoder" / "model.safetensors").unlink()  # an interrupted download
    with pytest.raises(UserError, match="did not answer"):
        CLIPTextEncoder("some/model")


def test_only_the_text_encoder_is_downloaded():
    pipeline = [
        "model_index.json",
        "v1-5.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ]
    assert hub.wanted(pipeline) == [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ]
    assert hub.wanted(["config.json", "pytorch_model.bin", "vocab.txt", "flax_model.msgpack"]) == [
        "config.json",
        "pytorch_model.bin",
        "vocab.txt",
    ]


@pytest.fixture
def mirror(clip_folder, nowhere, monkeypatch):
    """A hub on this computer that has one repository, some/model, and keeps a list of what was asked for."""
    files = {str(p.relative_to(clip_folder)): p.read_bytes() for p in clip_folder.rglob("*") if p.is_file()}
    files["unet/diffusion_pytorch_model.safetensors"] = b"gigabytes"
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/some/model"):
                info = {
                    "_id": "0",
                    "id": "some/model",
                    "sha": "1" * 40,
                    "siblings": [{"rfilename": name} for name in files],
                }
                tree = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
                return self.answer(
                    200, json.dumps(tree if "/tree/" in path else info).encode(), Content_Type="application/json"
                )
            name = path.split(f"/resolve/{'1' * 40}/")[-1]
            if path.startswith("/some/model/resolve/") and name in files:
                asked.append(name)
                return self.answer(
                    200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit="1" * 40
                )
            return self.answer(404, X_Error_Code="RepoNotFound" if path.startswith("/api") else "")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_mirror_is_honoured(mirror, encoder, monkeypatch):
    torch.testing.assert_close(CLIPTextEncoder("some/model")(CAPTIONS), encoder(CAPTIONS), atol=1e-5, rtol=0)
    assert set(mirror) == {
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    }
    with pytest.raises(UserError, match="could not be downloaded"):
        CLIPTextEncoder("some/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert CLIPTextEncoder("some/model").dim == 16  # from the cache now


# -------------------------------------------------------------------------------------------------------------- cached


def files(folder: Path):
    return sorted(p.name for p in folder.iterdir())


def test_the_second_use_reads_the_file(clip_folder, tmp_path, monkeypatch):
    clip, folder = CLIPTextEncoder(str(clip_folder)), tmp_path / "cache"
    calls = []
    forward = clip.forward
    monkeypatch.setattr(clip, "forward", lambda captions: calls.append(len(captions)) or forward(captions))
    first = CachedTextEncoder(clip, CAPTIONS * 3, folder, batch=5)
    assert calls == [5, 5, 3]  # the twelve captions and the empty one, each once
    expected = forward(CAPTIONS)
    torch.testing.assert_close(first(CAPTIONS), expected, atol=2e-3, rtol=1e-3)
    assert (first.dim, first.length, len(calls)) == (16, 40, 3) and first(CAPTIONS).dtype == torch.float32

    def refuse(captions):
        raise AssertionError("the encoder was called")

    monkeypatch.setattr(clip, "forward", refuse)
    second = CachedTextEncoder(clip, CAPTIONS[::-1], folder)
    assert torch.equal(second(CAPTIONS + [""]), first(CAPTIONS + [""])) and files(folder) == [first.path.name]
    with pytest.raises(AssertionError, match="was called"):
        second(["a red creature", "a zebra"])
    monkeypatch.setattr(clip, "forward", forward)
    mixed = second(["a zebra", CAPTIONS[3]])
    torch.testing.assert_close(mixed, forward(["a zebra", CAPTIONS[3]]), atol=2e-3, rtol=1e-3)


def test_the_file_belongs_to_one_encoder_and_its_captions(clip_folder, tmp_path):
    clip, folder = CLIPTextEncoder(str(clip_folder)), tmp_path / "cache"
    first = CachedTextEncoder(clip, CAPTIONS, folder)
    assert CachedTextEncoder(clip, CAPTIONS[:5], folder).path != first.path
    assert CachedTextEncoder(CLIPTextEncoder(str(clip_folder), length=30), CAPTIONS, folder).path != first.path
    with torch.no_grad():
        clip.network.encoder.layers[1].mlp.fc2.bias[3] += 0.5
    other = CachedTextEncoder(clip, CAPTIONS, folder)
    assert other.path != first.path and (other(CAPTIONS) - first(CAPTIONS)).abs().max() > 0.1
    assert len(files(folder)) == 4
    first.path.write_bytes(first.path.read_bytes()[:-100])  # damaged: computed again
    again = CachedTextEncoder(CLIPTextEncoder(str(clip_folder)), CAPTIONS, folder)
    assert again.path == first.path and torch.equal(again(CAPTIONS), first(CAPTIONS))
    assert torch.equal(load_file(first.path)["embeddings"], first.table)


def test_what_cannot_be_cached(encoder, clip_folder, tmp_path):
    with pytest.raises(UserError, match="frozen"):
        CachedTextEncoder(encoder, CAPTIONS, tmp_path / "cache")
    clip = CLIPTextEncoder(str(clip_folder))
    with torch.no_grad():
        clip.network.final_layer_norm.bias += 1e5
    with pytest.raises(UserError, match="half precision"):
        CachedTextEncoder(clip, CAPTIONS, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not os.listdir(tmp_path / "cache")

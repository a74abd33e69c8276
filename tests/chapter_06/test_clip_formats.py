"""Checkpoints of a Chinese CLIP in every layout, and convert_clip.py."""

import argparse
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cn_clip.clip.model import convert_state_dict
from safetensors.torch import load_file, save_file

from common.errors import UserError
from helpers.chapter_06 import CONVERT_CLIP, WEIGHTS, wide
from inpaint_gif.clip import formats, model
from inpaint_gif.clip.model import ChineseCLIP, find_checkpoint, load_clip


def flash(state) -> dict:
    """The names that cn_clip's own function gives to weights for FlashAttention."""
    return convert_state_dict(dict(state))


def broken(state, change) -> dict:
    state = dict(state)
    change(state)
    return state


def test_a_checkpoint_as_cn_clips_training_writes_it(tmp_path, images):
    """With `module.` before each name and other things in it; no sizes, and the vocabulary beside it."""
    checkpoint = wide()
    state = {f"module.{key}": value for key, value in checkpoint.state.items()} | {
        "module.bert.pooler.dense.weight": torch.zeros(2, 2)
    }
    torch.save({"epoch": 3, "step": 9, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / "epoch3.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(checkpoint.vocab), encoding="utf-8")
    clip = model.ChineseCLIP(formats.read_checkpoint(tmp_path / "epoch3.pt"), "transformers")
    assert clip.checkpoint.config == checkpoint.config
    torch.testing.assert_close(clip.encode_image(images), ChineseCLIP(checkpoint, "transformers").encode_image(images))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="without a vocabulary; put the vocab.txt"):
        formats.read_checkpoint(tmp_path / "epoch3.pt")


@pytest.mark.parametrize("layout", ["fp16", "shards", "bin", "bin in fp16"])
def test_layouts_of_folders(layout, checkpoint, checkpoint_folder, tmp_path):
    """As save_pretrained of transformers writes them."""
    target = tmp_path / "clip"
    shutil.copytree(checkpoint_folder, target)
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
    made = find_checkpoint(str(target))
    tolerance = 2e-3 if "fp16" in layout else 0
    assert made.state.keys() == checkpoint.state.keys()
    assert all(
        torch.allclose(made.state[key], checkpoint.state[key], atol=tolerance, rtol=tolerance)
        for key in checkpoint.state
    )


@pytest.mark.parametrize(
    "layout",
    [
        "plain",
        "flash",
        "image",
        "prefixed",
        "namespace",
        "half",
        "compiled",
        "other key",
        "no key",
        "old file",
        "safetensors",
    ],
)
def test_layouts_of_checkpoints(layout, tmp_path, command_line):
    """Each becomes a folder that holds the same weights. A result that is not whole is never reported as success."""
    checkpoint, out = wide(), tmp_path / "out"
    state = {
        "flash": flash(checkpoint.state),
        "image": {key.replace("attn.in_proj_", "attn.Wqkv."): value for key, value in checkpoint.state.items()},
        "prefixed": {f"module.{key}": value for key, value in flash(checkpoint.state).items()}
        | {"module.bert.pooler.dense.bias": torch.zeros(8)},
        "half": {key: value.half() for key, value in checkpoint.state.items()},
        "compiled": {f"module._orig_mod.{key}": value for key, value in checkpoint.state.items()},
    }.get(layout, checkpoint.state)
    assert layout != "flash" or (
        set(state) ^ set(checkpoint.state) and not any("in_proj" in key or "query" in key for key in state)
    )
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.98), "params": [0]}],
    }
    whole = {"epoch": 3, "step": 300, "name": "x", "state_dict": state, "optimizer": optimizer}
    whole |= {"args": argparse.Namespace(lr=1e-5, vision_model="ViT-B-16")} if layout == "namespace" else {}
    whole = {"other key": {"model": state, "epoch": 1}, "no key": state}.get(layout, whole)
    file = tmp_path / ("epoch_latest.safetensors" if layout == "safetensors" else "epoch_latest.pt")
    if layout == "safetensors":
        save_file(state, file)
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=layout != "old file")
    (tmp_path / "vocab.txt").write_text("\n".join(checkpoint.vocab), encoding="utf-8")
    code, said, err = command_line(CONVERT_CLIP, "--clip", file, "--out", out)
    assert code == 0 and "cn_clip and transformers differ by" in said, err
    made = find_checkpoint(str(out))
    assert (
        made.config == checkpoint.config
        and made.vocab == checkpoint.vocab
        and made.state.keys() == checkpoint.state.keys()
    )
    tolerance = 2e-3 if layout == "half" else 0
    assert all(
        torch.allclose(made.state[key], checkpoint.state[key], atol=tolerance, rtol=tolerance)
        for key in checkpoint.state
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s.pop("visual.transformer.resblocks.1.attn.in_proj_bias"),
            "another architecture: .*bias is missing",
        ),
        (lambda s: s.update({"visual.extra": torch.zeros(1)}), "another architecture: visual.extra is unknown"),
        (
            lambda s: s.update({"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(5, 64)}),
            "another architecture",
        ),
        (
            lambda s: s.update(
                {
                    "visual.transformer.resblocks.0.attn.Wqkv.weight": torch.zeros(()),
                    "bert.encoder.layer.0.attention.self.Wqkv.bias": torch.zeros(1),
                }
            ),
            "wrong number of dimensions|another architecture",
        ),
        (
            lambda s: s.update({"visual.conv1.weight": torch.zeros(4)}),
            "holds no Chinese CLIP: visual.conv1.weight or another",
        ),
        (
            lambda s: s["visual.proj"].__setitem__((0, 0), float("nan")),
            "holds infinite numbers or NaN, first in visual.proj",
        ),
    ],
)
def test_what_cannot_be_used_is_not_converted(change, sentence, tmp_path, command_line):
    checkpoint = wide()
    torch.save(
        {"state_dict": broken({key: value.clone() for key, value in checkpoint.state.items()}, change)},
        tmp_path / "x.pt",
    )
    (tmp_path / "vocab.txt").write_text("\n".join(checkpoint.vocab), encoding="utf-8")
    for out in (tmp_path / "out", tmp_path / "out.pt"):
        code, said, err = command_line(CONVERT_CLIP, "--clip", tmp_path / "x.pt", "--out", out)
        assert code == 2 and said == "" and re.search(sentence, err) and "Traceback" not in err and not out.exists(), (
            err
        )


def test_heads_that_the_weights_do_not_tell(checkpoint, tmp_path, recwarn):
    """The sizes of a model that was never published may be in a file beside it;
    without one, a warning says what is assumed.
    """
    torch.save({"state_dict": checkpoint.state}, tmp_path / "x.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(checkpoint.vocab), encoding="utf-8")
    assert (
        formats.read_checkpoint(tmp_path / "x.pt").config.text_num_attention_heads
        == 1
        != checkpoint.config.text_num_attention_heads
    )
    assert "does not say how wide its attention heads are" in str(recwarn.pop().message)
    (tmp_path / "cn_clip.json").write_text(json.dumps(asdict(checkpoint.config)))
    assert formats.read_checkpoint(tmp_path / "x.pt").config == checkpoint.config and not recwarn
    (tmp_path / "cn_clip.json").write_text('{"embed_dim": "many"}')
    assert formats.read_checkpoint(tmp_path / "x.pt").config != checkpoint.config


def test_the_vocabulary_that_fits_is_taken(tmp_path):
    """The one beside the checkpoint before the one that cn_clip brings along, whatever its line ends;
    one that does not fit is refused.
    """
    checkpoint = wide()
    torch.save({"state_dict": checkpoint.state}, tmp_path / "x.pt")
    for text in (
        "\n".join(checkpoint.vocab),
        "\r\n".join(checkpoint.vocab) + "\r\n\r\n",
        "\ufeff" + "\n".join(checkpoint.vocab) + "\n",
    ):
        (tmp_path / "vocab.txt").write_bytes(text.encode())
        assert find_checkpoint(str(tmp_path / "x.pt")).vocab == checkpoint.vocab
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(UserError, match="has 2 tokens, but its weights are for .*; put the vocab.txt"):
        find_checkpoint(str(tmp_path / "x.pt"))
    (tmp_path / "vocab.txt").write_bytes("番茄".encode("gbk"))
    with pytest.raises(UserError, match="vocab.txt cannot be read as UTF-8 text"):
        find_checkpoint(str(tmp_path / "x.pt"))


def test_a_published_name_is_taken_from_cn_clips_cache(tmp_path, monkeypatch):
    checkpoint = wide()
    monkeypatch.setattr(model, "CACHE", tmp_path)
    monkeypatch.setattr(model, "package_vocab", lambda: None)
    torch.save({"state_dict": checkpoint.state}, tmp_path / "clip_cn_vit-b-16.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(checkpoint.vocab), encoding="utf-8")
    clip = load_clip("ViT-B-16", "transformers")
    assert torch.equal(clip.encode_text(["米饭"]), ChineseCLIP(checkpoint, "transformers").encode_text(["米饭"]))


def test_a_published_name_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "CACHE", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"ViT-B-16 needs clip_cn_vit-b-16.pt, which is not in .* did not answer .* --clip pretrained"
    ):
        load_clip("ViT-B-16")


def test_wrong_files_are_refused(checkpoint, checkpoint_folder, tmp_path):
    """Each with one sentence that names what is wrong."""

    def refused(name, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence) as caught:
            load_clip(name, "transformers")
        assert "\n" not in str(caught.value)

    def copied(**changes) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(checkpoint_folder, target)
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
    refused(
        copied(
            vision_config__intermediate_size=4 * 10**6,
            vision_config__hidden_size=10**6,
            vision_config__num_attention_heads=1,
        ),
        "weights of another architecture",
    )
    refused(copied(vision_config__hidden_act="gelu"), "hidden_act gelu in its vision_config; .* quick_gelu")
    refused(copied(text_config__num_attention_heads=5), "describes no Chinese CLIP|multiple of 5")
    refused(
        copied(vision_config__num_attention_heads=0),
        "num_attention_heads 0 in its vision_config|describes no Chinese CLIP|must be a multiple",
    )
    refused(
        copied(text_config__hidden_act="quick_gelu"),
        "text_hidden_act is 'quick_gelu'; cn_clip has gelu, gelu_new, relu, swish",
    )
    # then the weights are asked
    for sizes in ({"text_hidden_act": 3}, {"vision_layers": 2.5}, {"vision_width": None}, {"vocab_size": "many"}):
        own = {"config": asdict(checkpoint.config) | sizes, "vocab": list(checkpoint.vocab)}
        assert find_checkpoint(
            str(pickled({"state_dict": checkpoint.state} | own))
        ).config == formats.config_from_weights(checkpoint.state, "a test")
    own = {"config": asdict(checkpoint.config) | {"vision_layers": -1}, "vocab": list(checkpoint.vocab)}
    refused(pickled({"state_dict": checkpoint.state} | own), "another architecture")
    refused(
        pickled(
            {
                "state_dict": checkpoint.state,
                "config": asdict(checkpoint.config),
                "vocab": [[1]] * len(checkpoint.vocab),
            }
        ),
        "is no list of texts",
    )
    broken = copied()
    (broken / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    refused(broken, f"has 4 tokens, but its weights are for {checkpoint.config.vocab_size}")
    refused(pickled({"state_dict": {"visual.layer1.0.conv1.weight": torch.zeros(1)}}), "ResNet")
    refused(pickled({"state_dict": {"layer.weight": torch.zeros(1)}}), "holds no Chinese CLIP: among its 1 weights")
    refused(pickled([1, 2]), "holds no state dict")
    (tmp_path / "text.pt").write_text("hello")
    refused(
        tmp_path / "text.pt",
        "cannot be read as a checkpoint of weights: it is damaged, or torch.save has not written it",
    )
    less = dict(wide().state)
    del less["visual.transformer.resblocks.1.ln_2.bias"]
    refused(
        pickled({"state_dict": less, "vocab": list(checkpoint.vocab)}),
        "another architecture: .*layer_norm2.bias is missing",
    )
    with pytest.raises(UserError, match="unknown backend 'back'"):
        load_clip(checkpoint_folder, "back")


def test_convert_there_and_back(clip_run, tmp_path, command_line):
    code, out, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "clip.pt")
    assert code == 0 and "clip.pt" in out, err
    assert "cn_clip and transformers differ by" in out
    code, _, err = command_line(CONVERT_CLIP, "--clip", tmp_path / "clip.pt", "--out", tmp_path / "folder")
    assert code == 0, err
    assert (tmp_path / "folder/model.safetensors").read_bytes() == (clip_run / WEIGHTS).read_bytes()
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "half", "--half")
    assert (
        code == 0 and (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * (clip_run / WEIGHTS).stat().st_size
    ), err
    whole, half = (load_clip(path, "transformers").encode_text(["番茄炒蛋"]) for path in (clip_run, tmp_path / "half"))
    torch.testing.assert_close(whole, half, atol=2e-3, rtol=0)
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "clip.pt")
    assert code == 2 and "exists already" in err
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run)
    assert code == 2 and "say where" in err
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "clip.safetensors")
    assert code == 2 and "neither a folder for transformers nor a checkpoint for cn_clip" in err
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "half.pt", "--half")
    assert code == 2 and "--half is for a folder" in err


def test_convert_without_cn_clip(clip_run, tmp_path, command_line, monkeypatch):
    """The weights are still loaded in transformers before they are written, and it is said what was not done."""
    monkeypatch.setattr("inpaint_gif.clip.convert.cn_clip_installed", lambda: False)
    code, out, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "clip.pt")
    assert code == 0 and "the two libraries were not compared" in out and model.INSTALL in out, err


def test_convert_writes_nothing_where_the_libraries_differ(clip_run, tmp_path, command_line, monkeypatch):
    real = model.CnCLIPNetwork.text
    monkeypatch.setattr(model.CnCLIPNetwork, "text", lambda self, ids: real(self, ids) + 0.1)
    code, _, err = command_line(CONVERT_CLIP, "--clip", clip_run, "--out", tmp_path / "clip.pt")
    assert code == 2 and "nothing was written" in err and not (tmp_path / "clip.pt").exists()


def test_numbers_too_large_for_half_precision(checkpoint, tmp_path):
    large = checkpoint._replace(
        state=checkpoint.state | {"text_projection": checkpoint.state["text_projection"] + 1e5}
    )
    with pytest.raises(UserError, match="text_projection.weight of a test holds numbers too large for half precision"):
        formats.save_folder(tmp_path / "half", large, torch.float16)
    assert not (tmp_path / "half").exists()

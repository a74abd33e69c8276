"""Stable Diffusion in one file: tiny random models under the names of CompVis must be the same models as
the folders they came from.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from common.errors import UserError
from common.models.model_folder import load_model, load_vae
from common.models.pipeline import SamplingConfig
from common.models.pipeline_folder import find_pipeline
from common.models.single_file.conversion import as_folder
from common.models.single_file.kinds import kind_of
from common.models.text.tokenizer import train_tokenizer
from common.models.text_to_image_folder import open_latent_pipeline
from helpers.tiny_families import make_tiny_sd, make_tiny_xl

CAPTIONS = ["a red round creature", "a blue tall creature with horns", "一只红色的小怪兽"] * 2
LEVELS, LAYERS = 4, 2

# ----------------------------------------------------------------------- the names of CompVis, from those of diffusers

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(key: str, lowest: bool = False) -> str:
    """lowest: whether the lowest level has attention"""
    part, _, end = key.rpartition(".")
    if part in UNET_ENDS:
        return f"{UNET_ENDS[part]}.{end}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", key):
        way, i, what, j, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        n = (LAYERS + 1) * i + j
        if what == "downsamplers":
            return f"input_blocks.{(LAYERS + 1) * (i + 1)}.0.op.{end}"
        if what == "upsamplers":
            return f"output_blocks.{n + LAYERS}.{1 if i == 0 and not lowest else 2}.{rest}"
        where = f"input_blocks.{n + 1}" if way == "down" else f"output_blocks.{n}"
        return f"{where}.0.{resnet_name(rest)}" if what == "resnets" else f"{where}.1.{rest}"
    what, i, rest = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key).groups()
    return f"middle_block.{2 * int(i)}.{resnet_name(rest)}" if what == "resnets" else f"middle_block.1.{rest}"


def resnet_name(rest: str) -> str:
    part, _, end = rest.rpartition(".")
    return f"{RESNET[part]}.{end}"


def vae_name(key: str) -> str:
    key = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", key)
    key = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{LEVELS - 1 - int(found[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{LEVELS - 1 - int(found[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    for new, old in VAE_ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def vae_as_compvis(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    state = {vae_name(key): value for key, value in vae.state_dict().items()}
    return {
        key: value[..., None, None] if ".attn_1." in key and value.ndim == 2 else value for key, value in state.items()
    }


def open_clip(text: CLIPTextModel, unread: int = 1) -> dict[str, torch.Tensor]:
    """OpenCLIP's names. unread: one more layer behind those that are read, or 0"""
    state = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    new = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T if unread == 0 else torch.eye(text.config.hidden_size),
        "logit_scale": torch.tensor(1.0),
    }
    for i in range(text.config.num_hidden_layers):
        for end in ("weight", "bias"):
            for theirs, ours in OPEN_CLIP.items():
                new[f"transformer.resblocks.{i}.{ours}.{end}"] = state[f"encoder.layers.{i}.{theirs}.{end}"]
            qkv = [state[f"encoder.layers.{i}.self_attn.{name}_proj.{end}"] for name in "qkv"]
            new[f"transformer.resblocks.{i}.attn.in_proj_{end}"] = torch.cat(qkv)
    if unread == 0:
        return new
    last = {key: value for key, value in new.items() if key.startswith(f"transformer.resblocks.{i}.")}
    return new | {key.replace(f".{i}.", f".{i + 1}.", 1): value.clone() for key, value in last.items()}


def as_compvis(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    state = {f"model.diffusion_model.{unet_name(key)}": value for key, value in pipe.unet.state_dict().items()}
    state |= {f"first_stage_model.{key}": value for key, value in vae_as_compvis(pipe.vae).items()}
    if pipe.unet.config.use_linear_projection:
        text = {f"cond_stage_model.model.{key}": value for key, value in open_clip(pipe.text_encoder).items()}
    else:
        names = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
        text = {f"cond_stage_model.transformer.text_model.{key}": value for key, value in names.items()}
    return {key: value.contiguous() for key, value in (state | text).items()}


def xl_as_compvis(pipe: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    state = {f"model.diffusion_model.{unet_name(key, True)}": value for key, value in pipe.unet.state_dict().items()}
    state |= {f"first_stage_model.{key}": value for key, value in vae_as_compvis(pipe.vae).items()}
    names = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    state |= {f"conditioner.embedders.0.transformer.text_model.{key}": value for key, value in names.items()}
    second = open_clip(pipe.text_encoder_2, unread=0)
    state |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return {key: value.contiguous() for key, value in state.items()}


# --------------------------------------------------------------------------------------------------------- tiny models


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A folder with a tokenizer in it."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(CAPTIONS, 16).save(folder / "tokenizer")
    return folder


@pytest.fixture
def beside(words, tmp_path, monkeypatch) -> Path:
    """The working folder of a test, with a tokenizer in it, where files are put and converted."""
    (tmp_path / "tokenizer").symlink_to(words / "tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def first(words) -> StableDiffusionPipeline:
    return make_tiny_sd(words)


def assert_same_networks(pipe: StableDiffusionPipeline, folder: Path) -> None:
    theirs = type(pipe).from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder"):
        mine, other = getattr(pipe, part).state_dict(), getattr(theirs, part).state_dict()
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine), part
    heads = pipe.unet.config["attention_head_dim"]  # one number stands for all levels
    assert theirs.unet.config["attention_head_dim"] == (heads if isinstance(heads, list) else [heads] * LEVELS)
    for part, names in (
        ("unet", ("use_linear_projection", "down_block_types", "up_block_types", "cross_attention_dim")),
        ("vae", ("scaling_factor", "block_out_channels", "latent_channels")),
        ("text_encoder", ("hidden_act", "num_attention_heads")),
    ):
        for name in names:
            here, there = (
                (list(v) if isinstance(v, tuple) else v)
                for v in (
                    getattr(each, part).config.to_dict()[name]
                    if part == "text_encoder"
                    else getattr(each, part).config[name]
                    for each in (pipe, theirs)
                )
            )
            assert here == there, name


def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe(
        "a red creature",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        height=64,
        width=64,
        output_type="pt",
    ).images


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("form", ["safetensors", "ckpt", "half"])
def test_the_first_stable_diffusion(form, first, beside):
    """Its networks and pictures are those of the folder, with diffusers and with chapter 4."""
    state = as_compvis(first)
    if form == "ckpt":  # as Lightning stores it, with an average and with what is no weight
        path = beside / "model.ckpt"
        torch.save({"state_dict": state | {"model_ema.decay": torch.tensor(0.9)}, "global_step": 7, "epoch": 1}, path)
    else:
        path = beside / "model.safetensors"
        save_file({key: value.half() for key, value in state.items()} if form == "half" else state, path)
    folder = as_folder(path)
    if form == "half":
        assert {
            value.dtype for value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").values()
        } == {torch.float16}
        torch.testing.assert_close(load_model(path).net.conv_in.weight, first.unet.conv_in.weight, rtol=0, atol=1e-3)
        return
    assert_same_networks(first, folder)
    first.save_pretrained(beside / "folder")
    torch.testing.assert_close(
        draw(StableDiffusionPipeline.from_pretrained(folder)),
        draw(StableDiffusionPipeline.from_pretrained(beside / "folder")),
    )
    config = SamplingConfig(sampler="ddim:2", size=64)
    assert torch.equal(
        open_latent_pipeline(path).txt2img(["a red creature"], config),
        open_latent_pipeline(beside / "folder").txt2img(["a red creature"], config),
    )
    assert as_folder(path) == folder  # the second time nothing is converted


def test_old_text_encoder_names(first, beside):
    """Some files of 2022 have no text_model in the names of the text encoder, and keep its position ids."""
    state = {key.replace("transformer.text_model.", "transformer."): value for key, value in as_compvis(first).items()}
    save_file(
        state | {"cond_stage_model.transformer.embeddings.position_ids": torch.arange(16)[None]},
        beside / "old.safetensors",
    )
    assert_same_networks(first, as_folder(beside / "old.safetensors"))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, "v_prediction"),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon"),
        ({"yaml": "v"}, "v_prediction"),
        ({"yaml": "eps"}, "epsilon"),
        ({"key": "v_pred"}, "v_prediction"),
    ],
)
def test_the_second_stable_diffusion(named, expected, words, beside, capsys):
    """OpenCLIP, linear projections, heads 64 wide; what it predicts is looked for where the community writes it."""
    pipe = make_tiny_sd(words, second=True)
    path = beside / "second.safetensors"
    more = {named["key"]: torch.tensor([])} if "key" in named else {}
    save_file(as_compvis(pipe) | more, path, metadata=named.get("metadata"))
    if "yaml" in named:
        line = '    parameterization: "v"\n' if named["yaml"] == "v" else "    timesteps: 1000\n"
        path.with_suffix(".yaml").write_text(f"model:\n  params:\n{line}")
    folder = as_folder(path)
    assert_same_networks(pipe, folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == expected
    assert ("does not say what its U-Net predicts" in capsys.readouterr().out) == (not named)


def test_an_inpainting_file(words, beside):
    pipe = make_tiny_sd(words, channels=9)
    save_file(as_compvis(pipe), beside / "holes.safetensors")
    assert_same_networks(pipe, as_folder(beside / "holes.safetensors"))
    assert (
        json.loads((as_folder(beside / "holes.safetensors") / "model_index.json").read_text())["_class_name"]
        == "StableDiffusionInpaintPipeline"
    )


def test_stable_diffusion_xl(words, beside):
    """Every weight and setting of the folder, the same picture, and a family that chapter 5 knows;
    the course's own U-Net refuses it.
    """
    pipe = make_tiny_xl(words)
    path = beside / "xl.safetensors"
    save_file(xl_as_compvis(pipe), path)
    with pytest.raises(UserError, match="holds a checkpoint of Stable Diffusion XL .*; chapter 5's programs"):
        load_model(path)
    folder = as_folder(path, ("sd", "xl"))
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, other = getattr(pipe, part).state_dict(), getattr(theirs, part).state_dict()
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine), part
    for part in ("unet", "vae"):
        here, there = dict(getattr(pipe, part).config), dict(getattr(theirs, part).config)
        differ = {
            name
            for name in here
            if not name.startswith("_") and json.dumps(here[name]) != json.dumps(there[name])  # tuples become lists
        }
        assert differ == {"sample_size"}, part  # the test's is tiny
    assert theirs.vae.config.scaling_factor == 0.13025 and theirs.config.force_zeros_for_empty_prompt
    torch.testing.assert_close(draw(theirs), draw(pipe))
    assert find_pipeline(path) == folder  # as --model of chapter 5


def test_parts_of_stable_diffusion_xl(words, beside):
    state = xl_as_compvis(make_tiny_xl(words))
    for lost, says in (
        ("conditioner.embedders.1.", "refiner of Stable Diffusion XL"),
        ("first_stage_model.", "without an autoencoder"),
        ("conditioner.embedders.1.model.transformer.resblocks.1.mlp", "resblocks|layers.1.mlp.fc. is missing|missing"),
        ("model.diffusion_model.label_emb", "weights of its U-Net cannot be converted"),
    ):
        save_file({key: value for key, value in state.items() if not key.startswith(lost)}, beside / "a.safetensors")
        with pytest.raises(UserError, match=says):
            as_folder(beside / "a.safetensors", ("sd", "xl"))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_alone(prefix, first, beside):
    """As vae-ft-mse-840000-ema-pruned.ckpt, where the weights of its loss lie beside it."""
    state = {prefix + key: value.contiguous() for key, value in vae_as_compvis(first.vae).items()} | {
        "loss.logvar": torch.zeros(1)
    }
    torch.save({"state_dict": state}, beside / "vae.ckpt")
    ours = load_vae(beside / "vae.ckpt").state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in first.vae.state_dict().items())
    with pytest.raises(
        UserError,
        match=r"vae.ckpt holds an autoencoder alone, where a checkpoint of Stable Diffusion 1.x or 2.x was expected",
    ):
        as_folder(beside / "vae.ckpt")


def test_weights_that_are_missing(first, beside):
    state = as_compvis(first)
    for lost, says in (
        ("first_stage_model.", "without an autoencoder"),
        ("cond_stage_model.", "without a text encoder"),
        ("model.diffusion_model.input_blocks.2.0.in_layers.2.bias", "down_blocks.0.resnets.1.conv1.bias is missing"),
        (
            "first_stage_model.encoder.conv_in.weight",
            "weights of its autoencoder cannot be converted .encoder.conv_in.weight is missing",
        ),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.mlp", "encoder.layers.1.mlp.fc1.weight is missing"),
        ("cond_stage_model.transformer.text_model.embeddings", "weights of its text encoder cannot be converted"),
        ("model.diffusion_model.input_blocks", "weights of its U-Net cannot be converted"),
    ):
        save_file(
            {key: value for key, value in state.items() if not key.startswith(lost)}, beside / "part.safetensors"
        )
        with pytest.raises(UserError, match=says) as problem:
            as_folder(beside / "part.safetensors")
        assert "\n" not in str(problem.value)
    assert not list((beside / "runs").rglob("*.partial")) and not list((beside / "runs").rglob("model_index.json"))


def test_without_a_tokenizer(first, beside, monkeypatch):
    """None beside the file, none in the cache, no network: one sentence says what to do."""
    (beside / "tokenizer").unlink()
    monkeypatch.setattr("common.io.hub.unanswered", lambda url: "did not answer within 3 s")
    monkeypatch.setattr("common.models.single_file.parts.in_cache", lambda name: None)
    save_file(as_compvis(first), beside / "a.safetensors")
    with pytest.raises(
        UserError, match="put a folder named tokenizer, from any Stable Diffusion folder, beside"
    ) as problem:
        as_folder(beside / "a.safetensors")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("names", "kind", "says"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "lora", "LoRA"),
        (["unet.down_blocks.0.attn1.processor.to_q_lora.down.weight"], "lora", "LoRA"),
        (["base_model.model.attn.to_q.lora_A.weight"], "lora", "LoRA"),
        (["lora_unet_mid_block.hada_w1_a"], "lora", "LoRA"),
        (["emb_params"], "inversion", "textual inversion"),
        (["<cat-toy>"], "inversion", "textual inversion"),
        (["control_model.time_embed.0.weight", "control_model.a", "control_model.b"], "controlnet", "ControlNet"),
        (
            ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.a", "time_embedding.b"],
            "controlnet",
            "ControlNet",
        ),
        (
            ["conditioner.embedders.0.transformer.a", "model.diffusion_model.b", "first_stage_model.c"],
            "other",
            "Stable Diffusion XL",
        ),
        (["model.diffusion_model.joint_blocks.0.a", "b", "c"], "other", "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.a", "b", "c"], "other", "FLUX"),
        (
            ["down_blocks.0.resnets.0.a", "time_embedding.linear_1.weight", "c"],
            "diffusers-unet",
            "U-Net under the names of diffusers",
        ),
        (["encoder.down_blocks.0.a", "b", "c"], "diffusers-vae", "autoencoder under the names of diffusers"),
        (["input_blocks.0.0.weight", "b", "c"], "unet", "U-Net alone"),
        (["text_model.embeddings.token_embedding.weight", "b", "c"], "text", "text encoder alone"),
        (["layer.weight", "layer.bias", "head.weight"], "unknown", "the first are head.weight, layer.bias"),
        (["linear.weight"], "unknown", "the first are linear.weight"),  # few and small, but no word
        (["mean", "std"], "unknown", "the first are mean, std"),
    ],
)
def test_what_a_file_holds(names, kind, says, tmp_path):
    """A file of another kind is refused with what it is."""
    state = {name: torch.zeros(2, 768 if name.startswith("<") else 2) for name in names}
    assert kind_of(state).name == kind
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        UserError,
        match=f"x.safetensors holds .*{says}.*, where a checkpoint of Stable Diffusion 1.x or 2.x was expected",
    ) as problem:
        load_model(tmp_path / "x.safetensors")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"words", "is a file, and no file of weights by its name"),
        ("a.safetensors", b"", "the file is empty"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        ("a.ckpt", b"<!doctype html><p>log in", "a web page"),
        ("a.ckpt", b"\x80\x04rubbish", "damaged"),
    ],
)
def test_files_that_are_no_weights(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_model(tmp_path / name)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="other objects can run code"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_run_and_a_part_of_a_folder(first, beside):
    (beside / "run" / "checkpoints").mkdir(parents=True)
    (beside / "run" / "checkpoints" / "step-00000004.pt").touch()
    with pytest.raises(UserError, match="is a checkpoint of the run .*run; give that folder"):
        load_model(beside / "run" / "checkpoints" / "step-00000004.pt")
    first.save_pretrained(beside / "sd")
    by_file = load_model(beside / "sd" / "unet" / "diffusion_pytorch_model.safetensors").net.state_dict()
    assert all(torch.equal(value, by_file[key]) for key, value in first.unet.state_dict().items())


def test_shapes_of_another_kind(first, beside):
    """Every shape that a configuration is inferred from, changed to another:
    one sentence, or the strict comparison of shapes.
    """
    state = as_compvis(first)
    names = [
        name
        for name in state
        if re.search(
            r"input_blocks\.(0\.0|1\.1\.transformer_blocks\.0\.attn2\.to_k)\.weight|out\.2\.weight|token_embedding"
            r"|position_embedding|layers\.0\.mlp\.fc1\.weight|encoder\.conv_in\.weight|post_quant_conv\.weight",
            name,
        )
    ]
    assert len(names) == 8
    for name in names:
        for value in (torch.zeros(()), torch.zeros(3), torch.zeros(0, 0), torch.zeros(1, 2, 3, 4, 5)):
            save_file(state | {name: value}, beside / "odd.safetensors")
            with pytest.raises(UserError) as problem:
                as_folder(beside / "odd.safetensors")
            assert str(problem.value).isprintable()

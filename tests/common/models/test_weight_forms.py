"""Every form in which diffusers and transformers write a model:
each must give the networks, and the picture, of the plain folder.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file

from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.io.state_dict import OLD_NAMES, new_names, read_component
from common.io.weight_files import choose, find_weights, look_for_weights, variant_in
from common.models.model_folder import Model, load_model, load_vae, save_model
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text import hub
from common.models.text.encoders import load_text, small_text
from common.models.text_to_image_folder import open_latent_pipeline, save_pipeline
from common.models.unet import UNet
from common.models.unet_config import UNetConfig, text_unet
from common.models.vae import AutoencoderKL as OurVAE
from common.models.vae import small_vae
from common.training.settings import with_build
from helpers.programs import load_program

CAPTIONS = ["a red round creature", "a blue tall creature with horns"] * 2
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIG = SamplingConfig(sampler="ddim:2", guidance_scale=3)


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion folder, whose weights half precision holds exactly."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    encoder = small_text(CAPTIONS, dim=32, layers=1, heads=2, length=16)
    pipeline = TextToImagePipeline(
        UNet(text_unet(8, 4, (8, 16), 32)), make_schedule("cosine"), "v", encoder, OurVAE(small_vae(16, 3, (8, 16), 4))
    )
    for net in (pipeline.vae, pipeline.unet, encoder):
        net.half().float()
    save_pipeline(folder, pipeline)
    return folder


@pytest.fixture(scope="module")
def picture(sd) -> torch.Tensor:
    return open_latent_pipeline(sd).txt2img(["a red creature"], CONFIG)


def rewrite(folder: Path, form: str) -> None:
    """The same folder with its weights in another form."""
    for part, stem in PARTS.items():
        path = folder / part / f"{stem}.safetensors"
        state, pickled = load_file(path), "pytorch_model" if part == "text_encoder" else stem
        path.unlink()
        if form in ("fp16", "bf16", "non_ema"):
            save_file(
                {k: v.half() for k, v in state.items()} if form == "fp16" else state,
                folder / part / f"{stem}.{form}.safetensors",
            )
        elif form == "bin":
            torch.save(state, folder / part / f"{pickled}.bin")
        elif form == "fp16.bin":
            torch.save({k: v.half() for k, v in state.items()}, folder / part / f"{pickled}.fp16.bin")
        else:
            suffix, middle, last = {
                "shards": ("safetensors", "", ""),
                "fp16 shards": ("safetensors", ".fp16", ".fp16"),
                "bin shards": ("bin", "", ""),
            }[form]
            stem, keys = pickled if suffix == "bin" else stem, sorted(state)
            files = {f"{stem}{middle}-0000{i + 1}-of-00002.{suffix}": keys[i::2] for i in range(2)}
            for name, own in files.items():
                some = {key: state[key] for key in own}
                save_file(some, folder / part / name) if suffix == "safetensors" else torch.save(
                    some, folder / part / name
                )
            places = {key: name for name, own in files.items() for key in own}
            (folder / part / f"{stem}.{suffix}.index{last}.json").write_text(
                json.dumps({"metadata": {"total_size": 0}, "weight_map": places})
            )


@pytest.mark.parametrize("form", ["fp16", "bf16", "non_ema", "bin", "fp16.bin", "shards", "fp16 shards", "bin shards"])
def test_the_same_picture(form, sd, picture, tmp_path):
    shutil.copytree(sd, tmp_path / "other")
    rewrite(tmp_path / "other", form)
    assert torch.equal(open_latent_pipeline(tmp_path / "other").txt2img(["a red creature"], CONFIG), picture)
    variant = {"fp16": "fp16", "bf16": "bf16", "non_ema": "non_ema", "fp16.bin": "fp16", "fp16 shards": "fp16"}.get(
        form
    )
    assert variant_in(tmp_path / "other") == variant
    # the forms are those of diffusers: it opens them as well
    theirs = UNet2DConditionModel.from_pretrained(
        tmp_path / "other" / "unet", variant=variant, use_safetensors="bin" not in form
    ).state_dict()
    ours = load_model(tmp_path / "other").net.state_dict()
    assert all(torch.equal(ours[key].half(), value.half()) for key, value in theirs.items())


def test_what_diffusers_writes_itself(sd, tmp_path):
    """save_pretrained with shards, variants and pickles."""
    net = UNet2DConditionModel.from_pretrained(sd / "unet")
    for name, how in (
        ("shards", {"max_shard_size": "20KB"}),
        ("variant", {"variant": "fp16"}),
        ("sharded variant", {"variant": "fp16", "max_shard_size": "20KB"}),
        ("pickle", {"safe_serialization": False}),
        ("pickled variant", {"safe_serialization": False, "variant": "fp16"}),
    ):
        net.save_pretrained(tmp_path / name, **how)
        state, _ = read_component(tmp_path / name)
        assert state.keys() == net.state_dict().keys() and all(
            torch.equal(state[key], value) for key, value in net.state_dict().items()
        ), name


def test_parts_in_different_forms(sd, picture, tmp_path):
    """Half-copied repositories: each part is looked through for itself."""
    for i, forms in enumerate((("fp16", "plain", "bin"), ("plain", "shards", "fp16"))):
        shutil.copytree(sd, tmp_path / str(i))
        for part, form in zip(PARTS, forms, strict=True):
            if form != "plain":
                shutil.copytree(sd, tmp_path / "whole", dirs_exist_ok=True)
                rewrite(tmp_path / "whole", form)
                shutil.rmtree(tmp_path / str(i) / part)
                shutil.move(tmp_path / "whole" / part, tmp_path / str(i) / part)
                shutil.rmtree(tmp_path / "whole")
        assert torch.equal(open_latent_pipeline(tmp_path / str(i)).txt2img(["a red creature"], CONFIG), picture)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.fp16.safetensors", "model.safetensors"], ("model.safetensors", None)),
        (
            ["model.fp16.safetensors", "pytorch_model.bin"],
            ("pytorch_model.bin", None),
        ),  # full precision first, as in diffusers
        (
            ["model.non_ema.safetensors", "model.fp16.safetensors", "model.bf16.safetensors"],
            ("model.fp16.safetensors", "fp16"),
        ),
        (
            ["diffusion_pytorch_model.non_ema.bin", "diffusion_pytorch_model.fp16.bin"],
            ("diffusion_pytorch_model.fp16.bin", "fp16"),
        ),
        (
            ["diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.fp16.safetensors"],
            ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ),
        (["diffusion_pytorch_model.non_ema.safetensors"], ("diffusion_pytorch_model.non_ema.safetensors", "non_ema")),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], ("model.safetensors.index.json", None)),
        (["model.fp16-00001-of-00002.safetensors"], None),  # a shard alone
        (["model-00001-of-00002.safetensors"], None),
        (
            [
                "flax_model.msgpack",
                "model.onnx",
                "config.json",
                "training_args.bin",
                "pytorch_lora_weights.safetensors",
            ],
            None,
        ),
    ],
)
def test_which_file_is_taken(names, chosen):
    assert choose(names) == chosen


def test_what_is_said_where_there_are_no_weights(sd, tmp_path):
    shutil.copytree(sd, tmp_path / "sd")
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "sd" / "unet" / "flax_model.msgpack"
    )
    assert look_for_weights(tmp_path / "sd" / "unet") is None
    with pytest.raises(
        UserError,
        match=r"diffusion_pytorch_model.safetensors is missing, and so are its other forms .*unet holds config.json, flax_model.msgpack$",
    ):
        load_model(tmp_path / "sd")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_map": {"a": "../../secret.safetensors"}}, "does not name the shards"),
        ({"weight_map": {"a": "/etc/passwd"}}, "does not name the shards"),
        ({"weight_map": ["a"]}, "does not name the shards"),
        ({"weight_map": {"a": 3}}, "does not name the shards"),
        ({"weight_map": {}}, "does not name the shards"),
        ({}, "does not name the shards"),
        (
            {"weight_map": {"a": "x-00001-of-00003.safetensors", "b": "x-00002-of-00003.safetensors"}},
            "lacks 2 of the 2 shards .* the first is x-00001-of-00003.safetensors",
        ),
    ],
)
def test_indices_that_lead_astray(change, says, tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(change))
    with pytest.raises(UserError, match=says) as problem:
        find_weights(tmp_path)
    assert "\n" not in str(problem.value)


def test_a_pickle_is_not_run(sd, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(sd, tmp_path / "sd")
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Evil()}, tmp_path / "sd" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="other objects can run code"):
        load_model(tmp_path / "sd")
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "sd" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="holds no state dict but a list"):
        load_model(tmp_path / "sd")


# ----------------------------------------------------------------------------------- models of pixels: old names, flat


@pytest.fixture
def ddpm(tmp_path) -> Path:
    """A pixel model with attention at two resolutions."""
    torch.manual_seed(0)
    cfg = UNetConfig(
        size=8, in_channels=3, out_channels=3, channels=(8, 16), attention=(True, True), groups=4, head_dim=4
    )
    save_model(tmp_path / "ddpm", Model(UNet(cfg), make_schedule("linear"), "eps", True))
    return tmp_path / "ddpm"


def with_old_names(path: Path) -> None:
    state = load_file(path)
    for new, old in ((new, old) for old, new in OLD_NAMES.items()):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    assert sum(".proj_attn." in key for key in state) >= 2
    save_file(state, path)


def test_old_names_of_attention(ddpm, tmp_path):
    """The same weights as diffusers reads from such a folder, in the U-Net and in the autoencoder."""
    path = ddpm / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_model(ddpm).net.state_dict()
    with_old_names(path)
    after, theirs = load_model(ddpm).net.state_dict(), UNet2DModel.from_pretrained(ddpm / "unet").state_dict()
    assert before.keys() == after.keys() == theirs.keys()
    assert all(torch.equal(after[key], before[key]) and torch.equal(theirs[key], before[key]) for key in before)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(tmp_path / "vae")
    with_old_names(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(value, vae.state_dict()[key]) for key, value in load_vae(tmp_path / "vae").state_dict().items()
    )


def test_only_names_of_attention_change():
    same = [
        "key.weight",
        "attentions.query.weight",
        "down_blocks.0.attentions.0.keys.weight",
        "down_blocks.0.attentions.0.value",
        "attentions.0.key.weight.x",
    ]
    assert list(new_names(dict.fromkeys(same))) == same
    assert list(new_names({"mid_block.attentions.0.value.bias": 1, "attentions.3.proj_attn.weight": 2})) == [
        "mid_block.attentions.0.to_v.bias",
        "attentions.3.to_out.0.weight",
    ]


def flat(folder: Path, to: Path) -> Path:
    """All files in one folder, as in google/ddpm-cifar10-32."""
    to.mkdir()
    shutil.copy(folder / "model_index.json", to)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", to)
    for file in (folder / "unet").iterdir():
        shutil.copy(file, to)
    return to


def test_a_flat_folder(ddpm, tmp_path, command_line):
    folder = flat(ddpm, tmp_path / "flat")
    net = load_model(ddpm).net.state_dict()
    assert all(torch.equal(value, net[key]) for key, value in load_model(folder).net.state_dict().items())
    theirs = DDPMPipeline.from_pretrained(folder).unet.state_dict()  # diffusers opens it too
    assert all(torch.equal(value, net[key]) for key, value in theirs.items())
    for model in (ddpm, folder, ddpm / "unet"):
        code, _, err = command_line(
            "01_ddpm_mnist/sample.py",
            "--model",
            model,
            "--n",
            "2",
            "--sampler",
            "ddim:2",
            "--device",
            "cpu",
            "--out",
            tmp_path / f"{model.name}.png",
        )
        assert code == 0, err
    assert (
        (tmp_path / "flat.png").read_bytes()
        == (tmp_path / "ddpm.png").read_bytes()
        == (tmp_path / "unet.png").read_bytes()
    )
    from finetune_diffusers.training.unconditional_trainer import open_model

    for model in (ddpm, folder):
        other, scheduler = open_model(model)
        assert torch.equal(other.conv_in.weight, net["conv_in.weight"]) and scheduler.config.beta_schedule == "linear"


def test_a_unet_without_its_scheduler(ddpm, tmp_path):
    shutil.copytree(ddpm / "unet", tmp_path / "alone")
    with pytest.raises(
        UserError,
        match="alone holds a U-Net alone: scheduler_config.json, which says how it was trained, is neither there nor in",
    ):
        load_model(tmp_path / "alone")


@pytest.mark.parametrize("place", ["folder", "unet", "flat", "file"])
def test_a_start_is_found_in_every_form(place, ddpm, tmp_path):
    start = {
        "folder": ddpm,
        "unet": ddpm / "unet",
        "flat": tmp_path / "flat",
        "file": ddpm / "unet" / "diffusion_pytorch_model.safetensors",
    }[place]
    if place == "flat":
        flat(ddpm, start)
    assert with_build(load_program("01_ddpm_mnist/train.py").Args(start=start)).channels == (8, 16)


# ------------------------------------------------------------------------------------------------------- text encoders


@pytest.mark.parametrize("form", ["fp16", "bin", "shards"])
def test_text_encoders(form, sd, tmp_path):
    shutil.copytree(sd, tmp_path / "sd")
    rewrite(tmp_path / "sd", form)
    ids = load_text(sd)(["a red creature"])
    assert torch.equal(load_text(tmp_path / "sd")(["a red creature"]), ids)
    assert hub.parts(tmp_path / "sd") == (tmp_path / "sd" / "text_encoder", tmp_path / "sd" / "tokenizer")


def test_what_is_downloaded_of_a_text_encoder():
    """One set of weights: full precision, else a variant, else shards with their index."""
    files = ["config.json", "tokenizer.json", "vocab.json", "flax_model.msgpack"]
    for there, wanted in (
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model-00001-of-00002.bin",
            ],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
    ):
        found = [file for file in hub.wanted([*files, *there]) if file not in files]
        assert sorted(found) == sorted(wanted)

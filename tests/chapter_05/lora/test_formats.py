"""LoRA files in the forms that people exchange: trained on models in the geometry of Stable Diffusion 1.5, 2.1 and XL,
written for the webui, read again, and added to a model's weights.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from common.errors import UserError
from finetune_diffusers.adapters import reading, writing
from finetune_diffusers.data.latent_dataset import encode, token_ids
from finetune_diffusers.training import lora
from finetune_diffusers.training.loss import predict_with_unet
from finetune_diffusers.training.text_encoders import TextAndUNet, predict_with_text
from helpers.finetune_programs import FEW, LORA, draw, refused
from helpers.programs import run_main
from helpers.tiny_families import write_tiny_sd, write_tiny_xl

KINDS = ("1.5", "2.1", "xl")
FLAGS = [*FEW, "--n", 4, "--measure", 0, "--prompts", "a red creature", "--sample-every", 100, "--lr", 1e-2]


@pytest.fixture(scope="session")
def families(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("geometries")
    return {
        "1.5": write_tiny_sd(place / "sd-1"),
        "2.1": write_tiny_sd(place / "sd-2", second=True),
        "xl": write_tiny_xl(place / "xl"),
    }


@pytest.fixture(scope="session")
def runs(families) -> dict[str, Path]:
    """A LoRA of U-Net and text encoders on each of them, with alpha unlike the rank. Read only."""
    found = {}
    for kind, model in families.items():
        found[kind] = model.with_name(f"{model.name}-lora")
        run_main(
            LORA, *FLAGS, "--steps", 2, "--model", model, "--rank", 2, "--alpha", 3, "--train-text-encoder",
            "--output-kohya-format", "--style", "none", "--out", found[kind],
        )  # fmt: skip
    return found


def opened(folder: Path) -> DiffusionPipeline:
    kind = StableDiffusionXLPipeline if "xl" in folder.name else StableDiffusionPipeline
    return kind.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_opens_what_was_trained_and_what_is_for_the_webui(families, runs, kind):
    """Both give one picture, which is not that of the model alone; adapters are at U-Net and text encoders."""
    pictures = {}
    for name in ("creatures", "creatures-kohya"):
        pipe = opened(families[kind])
        before = draw(pipe)
        pipe.load_lora_weights(runs[kind], weight_name=f"{name}.safetensors", adapter_name="a")
        pictures[name] = draw(pipe)
        for part in ("unet", "text_encoder", *(["text_encoder_2"] if kind == "xl" else [])):
            layers = list(writing.lora_layers(getattr(pipe, part), "a"))
            assert layers and any(float(layer.lora_B["a"].weight.detach().abs().max()) > 0 for _, layer in layers), (
                part
            )
    assert np.abs(pictures["creatures"] - before).max() > 1e-3
    np.testing.assert_allclose(pictures["creatures-kohya"], pictures["creatures"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_of_the_webui_converts_back_to_equal_weights(families, runs, kind):
    """Its names are those of kohya's scripts, every layer has its alpha, and its matrices are the trained ones."""
    trained = load_file(runs[kind] / "creatures.safetensors")
    written = load_file(runs[kind] / "creatures-kohya.safetensors")
    starts = {
        "1.5": {"lora_unet", "lora_te"},
        "2.1": {"lora_unet", "lora_te"},
        "xl": {"lora_unet", "lora_te1", "lora_te2"},
    }
    assert {re.match(r"lora_(unet|te\d?)", name)[0] for name in written} == starts[kind]
    assert {float(value) for name, value in written.items() if name.endswith(".alpha")} == {3.0}
    pipe = opened(families[kind])
    reading.load_adapters(pipe, [runs[kind] / "creatures-kohya.safetensors"])
    count = 0
    for part in reading.COMPONENTS:
        for name, layer in writing.lora_layers(getattr(pipe, part, None) or torch.nn.Module(), "1-creatures-kohya"):
            down, up = (getattr(layer, f"lora_{end}")["1-creatures-kohya"].weight for end in "AB")
            key = next(k for k in trained if k.startswith(f"{part}.") and portable(part, name) in k and down_end(k))
            assert torch.equal(down, trained[key])
            torch.testing.assert_close(up, 1.5 * trained[up_of(key)])  # alpha / rank is 3 / 2
            count += 1
    assert 2 * count == len(trained)
    assert reading.find_adapter(runs[kind]) == runs[kind] / "creatures.safetensors"  # --use RUN means this one


def added(layer) -> torch.Tensor:
    """What the adapter "a" adds to the layer's weight."""
    return layer.scaling["a"] * layer.lora_B["a"].weight.detach() @ layer.lora_A["a"].weight.detach()


def portable(part: str, name: str) -> str:
    return f".{writing.portable(part, name)}."


def down_end(key: str) -> bool:
    return key.endswith(("lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight"))


def up_of(key: str) -> str:
    return key.replace("lora_A", "lora_B").replace(".down.", ".up.")


def test_names_of_kohyas_scripts_for_xl(families, runs, tmp_path):
    """They number the blocks of the U-Net as the first code of Stable Diffusion does: input_blocks_4_1 and so on."""
    state = load_file(runs["xl"] / "creatures-kohya.safetensors")
    numbered = {
        re.sub(
            r"(down|up)_blocks_(\d)_attentions_(\d)|mid_block_attentions_0",
            lambda found: numbered_block(found[1], found[2], found[3]),
            name,
        ): value
        for name, value in state.items()
    }
    assert not any("down_blocks" in name for name in numbered) and any("input_blocks" in name for name in numbered)
    save_file(numbered, tmp_path / "numbered.safetensors")
    pictures = []
    for path in (tmp_path / "numbered.safetensors", runs["xl"] / "creatures-kohya.safetensors"):
        pipe = opened(families["xl"])
        reading.load_adapters(pipe, [path])
        pictures.append(draw(pipe))
    np.testing.assert_allclose(*pictures, atol=1e-5)


def numbered_block(way: str | None, block: str, layer: str, layers_per_block: int = 1) -> str:
    if way is None:
        return "middle_block_1"
    if way == "down":
        return f"input_blocks_{1 + int(block) * (layers_per_block + 1) + int(layer)}_1"
    return f"output_blocks_{int(block) * (layers_per_block + 1) + int(layer)}_1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_model_needs_no_adapter(families, runs, kind, tmp_path, command_line):
    """Its weights are W + scale alpha / r B A at every layer, those of text encoders too.

    XL's picture is that of the model with the adapter. The networks of the other two are so small that their normed
    groups have two values at the lowest level, whose difference of 1e-8 becomes one of 0.3 in a latent.
    """
    adapter = runs[kind] / "creatures.safetensors"
    flags = ["--use", adapter, "--model", families[kind], "--device", "cpu", "--fuse", tmp_path / f"fused-{kind}"]
    code, out, err = command_line(LORA, *flags, "--scale", 0.7)
    assert code == 0 and f"fused-{kind}" in out, err
    pipe = opened(families[kind])
    pipe.set_adapters(reading.load_adapters(pipe, [adapter]), [0.7])
    fused = opened(tmp_path / f"fused-{kind}")
    assert not list(writing.lora_layers(fused.unet, "default")) and "peft_config" not in vars(fused.unet)
    for part in [name for name in reading.COMPONENTS if hasattr(pipe, name)]:
        merged, before = (dict(getattr(each, part).named_parameters()) for each in (fused, opened(families[kind])))
        adapted = dict(writing.lora_layers(getattr(pipe, part), "1-creatures"))
        for name, layer in adapted.items():
            added = 0.7 * layer.lora_B["1-creatures"].weight @ layer.lora_A["1-creatures"].weight
            torch.testing.assert_close(merged[f"{name}.weight"], before[f"{name}.weight"] + added, atol=1e-6, rtol=0)
        rest = before.keys() - {f"{name}.weight" for name in adapted}
        assert rest and adapted and all(torch.equal(merged[name], before[name]) for name in rest), part
    if kind == "xl":
        np.testing.assert_allclose(draw(fused), draw(pipe), atol=1e-4)
    assert "is there already" in refused(command_line(LORA, *flags, "--scale", 0.7))
    assert "give --scale one number" in refused(command_line(LORA, *flags[:-1], tmp_path / "new", "--scale", 0, 1))


def test_a_file_is_converted_for_the_webui_without_training(families, runs, tmp_path, command_line):
    (tmp_path / "a.safetensors").write_bytes((runs["1.5"] / "creatures.safetensors").read_bytes())
    code, _, err = command_line(
        LORA,
        "--use",
        tmp_path / "a.safetensors",
        "--output-kohya-format",
        "--model",
        families["1.5"],
        "--device",
        "cpu",
    )
    assert code == 0, err
    found = []
    for name in ("a", "a-kohya"):
        pipe = opened(families["1.5"])
        pipe.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name="a")
        parts = (pipe.unet, pipe.text_encoder)
        found.append({where: added(layer) for part in parts for where, layer in writing.lora_layers(part, "a")})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 50
    assert all(torch.allclose(found[0][where], found[1][where], atol=1e-7) for where in found[0])
    assert max(float(change.abs().max()) for change in found[0].values()) > 1e-3
    with pytest.raises(UserError, match="no adapter 'default'"):
        writing.kohya_state(opened(families["1.5"]))


@pytest.mark.parametrize("kind", KINDS)
def test_text_encoders_in_the_network_say_what_the_pipeline_says(families, kind):
    """Tokens through TextAndUNet give the prediction of precomputed embeddings, for the empty caption of XL zeros."""
    pipe = opened(families[kind])
    captions = ("a red creature", "")
    images = type("Two", (), {"pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "__len__": lambda self: 2})()
    known, tokens = (encode(pipe, images, captions, quiet=True, as_tokens=flag) for flag in (False, True))
    assert torch.equal(token_ids(pipe, captions)[:, 0], tokens.batch(torch.arange(2))["ids"][:, 0])
    side = 32 // pipe.vae_scale_factor
    x, t = torch.randn(2, 4, side, side), torch.tensor([10, 700])
    batch = known.batch(torch.arange(2))
    batch |= {name: torch.stack([batch[name][0], empty]) for name, empty in known.empty.items()}
    with torch.no_grad():
        ours = predict_with_text(TextAndUNet(pipe), x, t, tokens.batch(torch.arange(2)))
        theirs = predict_with_unet(pipe.unet, x, t, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    if kind == "xl":
        assert all(not empty.any() for empty in known.empty.values())
        assert batch["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2


def test_prompts_and_style_of_a_run_are_used_with_its_adapter(runs):
    args = type("Args", (), {"prompts": (), "style": None, "model": "other"})()
    assert lora.prompts_for_use(args, runs["1.5"] / "creatures.safetensors") == ["a red creature"]
    with pytest.raises(UserError, match="--prompts is missing"):
        lora.prompts_for_use(args, Path("nowhere/a.safetensors"))
    args.style, args.prompts = "woodcut", ("a dog",)
    assert lora.prompts_for_use(args, Path("nowhere/a.safetensors")) == ["a dog, in the style of a woodcut"]

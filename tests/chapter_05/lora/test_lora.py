"""lora.py, on a tiny random Stable Diffusion."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from finetune_diffusers.adapters import reading as adapters
from finetune_diffusers.training import lora
from finetune_diffusers.training.flags import ATTENTION
from helpers.finetune_programs import LORA, TINY, UNET, draw, plain
from helpers.programs import run_main


def adapter(run: Path) -> Path:
    return run / "creatures-woodcut.safetensors"


def test_a_lora_opens_in_plain_diffusers_and_changes_the_picture(base, adapted):
    pipe = plain(base)
    before = draw(pipe)
    pipe.load_lora_weights(adapted, weight_name=adapter(adapted).name)
    assert np.abs(draw(pipe) - before).max() > 1e-3
    # at scale 0 it is the model itself, to the bit
    assert np.array_equal(draw(pipe, cross_attention_kwargs={"scale": 0.0}), before)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), before)
    assert adapter(adapted).stat().st_size < 0.2 * (base / UNET).stat().st_size


def test_a_lora_is_the_average_of_what_was_trained(base, adapted):
    """Opened by diffusers, its layers hold the averaged weights, and its alpha is known."""
    pipe = plain(base)
    pipe.load_lora_weights(adapted, weight_name=adapter(adapted).name, adapter_name="default")
    average = torch.load(adapted / "checkpoints" / "step-00000004" / "custom_checkpoint_1.pkl", weights_only=True)[
        "shadow_params"
    ]
    loaded = [weight for name, weight in pipe.unet.named_parameters() if "lora_" in name]
    assert len(loaded) == len(average) and all(torch.equal(a, b) for a, b in zip(loaded, average, strict=True))
    config = pipe.unet.peft_config["default"]
    assert (
        config.r == 4
        and config.lora_alpha == 4
        and set(config.target_modules) >= {"to_q", "to_k"}
        or config.target_modules
    )


def test_alpha_reaches_the_file(base, tmp_path):
    run_main(
        LORA,
        *TINY,
        "--model",
        base,
        "--steps",
        1,
        "--rank",
        2,
        "--alpha",
        6,
        "--warmup",
        0,
        "--measure",
        0,
        "--out",
        tmp_path / "run",
    )
    pipe = plain(base)
    pipe.load_lora_weights(tmp_path / "run", weight_name="creatures-woodcut.safetensors", adapter_name="a")
    assert pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.scaling["a"] == 3


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(base, adapted):
    pipe = plain(base)
    before = draw(pipe)
    layers = lora.add_adapter(pipe.unet.requires_grad_(False), 4, None, ATTENTION, 0)
    assert np.array_equal(draw(pipe), before)
    names = {name for name, weight in pipe.unet.named_parameters() if weight.requires_grad}
    assert names and all("lora_" in name for name in names) and len(names) == 2 * layers
    kept = load_file(adapted / "checkpoints" / "step-00000004" / "trained.safetensors")
    assert kept.keys() == names  # and only that is in a checkpoint
    assert all(weight.dtype == torch.float32 for weight in pipe.unet.parameters())


def test_frozen_weights_in_half_precision(base):
    unet = plain(base).unet.requires_grad_(False)
    lora.add_adapter(unet, 2, None, ATTENTION, 0, "bf16")
    assert {weight.dtype for weight in unet.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in unet.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_a_resumed_lora_is_the_same_lora(adapted, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(adapted, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    adapter(again).unlink()
    run_main(LORA, "--resume", again, "--device", "cpu")
    mine, theirs = (load_file(adapter(run)) for run in (again, adapted))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_several_adapters_are_mixed(base, adapted, tmp_path, command_line):
    other = tmp_path / "other.safetensors"
    weights = load_file(adapter(adapted))
    save_file({name: torch.randn_like(weight) for name, weight in weights.items()}, other)
    flags = [
        "--model",
        base,
        "--size",
        32,
        "--sample-steps",
        1,
        "--device",
        "cpu",
        "--style",
        "none",
        "--prompts",
        "a red creature",
        "a blue one",
    ]
    code, said, err = command_line(
        LORA, "--use", adapted, other, "--scale", 0, 1, *flags, "--sheet", tmp_path / "a.png"
    )
    assert code == 0, err
    assert said.count("a row:") == 4 and "1 creatures-woodcut + 0 other" in said
    code, said, err = command_line(LORA, "--use", adapted, "--scale", 0, 0.5, 1, *flags, "--sheet", tmp_path / "b.png")
    assert code == 0 and said.count("a row:") == 3, err
    pipe = plain(base)
    before = draw(pipe)
    pipe.set_adapters(adapters.load_adapters(pipe, [adapter(adapted), other]), [0.0, 0.0])
    assert np.array_equal(draw(pipe), before)


def test_adapters_that_do_not_fit(base, adapted, tmp_path):
    weights = load_file(adapter(adapted))
    key = next(key for key in weights if "lora_A" in key or "lora.down" in key)
    wide = tmp_path / "wide.safetensors"
    save_file(weights | {key: torch.zeros(4, weights[key].shape[1] + 1)}, wide)
    foreign = tmp_path / "foreign.safetensors"
    save_file({name.replace("mid_block", "third_block"): weight for name, weight in weights.items()}, foreign)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    for path, says in (
        (wide, "for a width of"),
        (foreign, "third_block"),
        (other, "no LoRA of a U-Net: it holds .*, where one of LoRA, LoCon"),
        (tmp_path / "broken.safetensors", "is damaged"),
    ):
        with pytest.raises(UserError, match=says):
            adapters.load_adapters(plain(base), [path])
    with pytest.raises(UserError, match="there is no file"):
        adapters.find_adapter(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="holds 4 .safetensors"):
        adapters.find_adapter(tmp_path)

"""Adapter files of chapter 5 in the forms that people have:
read into one, and compared with plain diffusers and with peft.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError
from finetune_diffusers.adapters import reading as adapters
from helpers.tiny_pipeline import write_tiny_pipeline

ENDS = (".to_q", ".to_k", ".to_v", ".to_out.0")
R, ALPHA = 3, 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture
def pipe(model) -> StableDiffusionPipeline:
    found = StableDiffusionPipeline.from_pretrained(model)
    found.set_progress_bar_config(disable=True)
    return found


def layers(network: nn.Module, ends: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        name: module.weight
        for name, module in network.named_modules()
        if name.endswith(ends) and hasattr(module, "weight")
    }


def pair(weight: Tensor, rank: int = R) -> tuple[Tensor, Tensor]:
    """(down, up) that change a layer visibly."""
    return torch.randn(rank, *weight.shape[1:]) * 0.2, torch.randn(
        weight.shape[0], rank, *[1] * (weight.ndim - 2)
    ) * 0.2


def kohya(found: dict[str, Tensor], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    state = {}
    for name, weight in found.items():
        down, up = pair(weight)
        key = prefix + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return state


def old_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers 0.14 to 0.21 named them: unet....attn1.processor.to_q_lora.down.weight"""
    state = {}
    for name, weight in found.items():
        block, last = name.removesuffix(".0").rsplit(".", 1)
        down, up = pair(weight)
        state |= {
            f"unet.{block}.processor.{last}_lora.down.weight": down,
            f"unet.{block}.processor.{last}_lora.up.weight": up,
        }
    return state


def answer(pipe: StableDiffusionPipeline) -> Tensor:
    """What the U-Net predicts for one prompt, through the text encoder."""
    ids = pipe.tokenizer(
        "a red creature", padding="max_length", max_length=64, truncation=True, return_tensors="pt"
    ).input_ids
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pipe.unet(x, 500, pipe.text_encoder(ids).last_hidden_state).sample


def save(state: dict[str, Tensor], path: Path, **metadata) -> Path:
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    torch.save(tensors, path) if path.suffix == ".bin" else save_file(
        tensors, path, metadata={"format": "pt"} | metadata
    )
    return path


def used(pipe: StableDiffusionPipeline, path: Path, scale: float = 1.0) -> Tensor:
    names = adapters.load_adapters(pipe, [path])
    pipe.set_adapters(names, [scale])
    return answer(pipe)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------- what plain diffusers opens as well


def form(kind: str, pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    torch.manual_seed(0)
    attention = layers(pipe.unet, ENDS)
    words = {
        name if name.startswith("text_model.") else f"text_model.{name}": weight
        for name, weight in layers(pipe.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")).items()
    }
    old = old_names(attention)
    pairs = {
        f"{name}.lora_{end}.weight": value
        for name, weight in attention.items()
        for end, value in zip("AB", pair(weight), strict=True)
    }
    return {
        "kohya": kohya(attention),
        "locon": kohya(attention | layers(pipe.unet, (".conv1", ".conv2"))),
        "old": old,
        "older": {name.removeprefix("unet."): value for name, value in old.items()},
        "new": {f"unet.{name}": value for name, value in pairs.items()},
        "with text": kohya(attention) | kohya(words, "lora_te_"),
        "text": kohya(words, "lora_te_"),
    }[kind]


KINDS = ("kohya", "locon", "old", "older", "new", "with text", "text")


@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, ".safetensors") for kind in KINDS), ("old", ".bin"), ("with text", ".bin")]
)
def test_the_same_as_plain_diffusers(pipe, model, tmp_path, kind, suffix):
    path = save(form(kind, pipe), tmp_path / f"adapter{suffix}")
    before, mine = answer(pipe), used(pipe, path)
    plain = StableDiffusionPipeline.from_pretrained(model)
    if kind == "older":  # of which diffusers loads nothing by now: its names begin without "unet."
        path = save(form("old", pipe), tmp_path / "old.safetensors")
    plain.load_lora_weights(tmp_path, weight_name=path.name)
    close(mine, answer(plain))
    assert (mine - before).abs().max() > 0.01
    pipe.set_adapters(["1-adapter"], [0.0])
    close(answer(pipe), before)


def test_half_of_a_text_encoder(pipe, tmp_path):
    """Adapters of q and v alone, which diffusers cannot name ("Could not automatically infer state dict type")."""
    words = {
        f"text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in layers(pipe.text_encoder, ("q_proj", "v_proj")).items()
    }
    path = save(kohya(layers(pipe.unet, ENDS)) | kohya(words, "lora_te_"), tmp_path / "te.safetensors")
    adapters.load_adapters(pipe, [path])
    assert adapters.adapted_layers(pipe, "1-te") == len(words) + len(
        layers(StableDiffusionPipeline.from_pretrained(pipe.name_or_path).unet, ENDS)
    )


def test_what_is_for_another_text_encoder_is_left_out_and_said(pipe, tmp_path):
    unet = kohya(layers(pipe.unet, ENDS))
    wide = kohya(
        {
            "text_model.encoder.layers.0.self_attn.q_proj": torch.zeros(768, 768),
            "text_model.encoder.layers.9.mlp.fc1": torch.zeros(9, 9),
        },
        "lora_te_",
    )
    save(unet, tmp_path / "unet.safetensors")
    with pytest.warns(
        UserWarning, match=r"another text encoder \(its .*q_proj has a width of 32, not 768\).* 2 layers, is left out"
    ):
        mine = used(pipe, save(unet | wide, tmp_path / "wide.safetensors"))
    other = StableDiffusionPipeline.from_pretrained(pipe.name_or_path)
    close(mine, used(other, tmp_path / "unet.safetensors"))
    with pytest.raises(UserError, match="made for the text encoder of another model"):
        adapters.load_adapters(pipe, [save(wide, tmp_path / "only.safetensors")])


def test_several_forms_at_once(pipe, tmp_path):
    """One with a text encoder's part and one without, mixed."""
    paths = [
        save(form(kind, pipe), tmp_path / f"{kind.replace(' ', '-')}.safetensors") for kind in ("with text", "old")
    ]
    before = answer(pipe)
    names = adapters.load_adapters(pipe, paths)
    pipe.set_adapters(names, [0.0, 0.0])
    close(answer(pipe), before)
    pipe.set_adapters(names, [0.0, 1.0])
    close(answer(pipe), used(StableDiffusionPipeline.from_pretrained(pipe.name_or_path), paths[1]))


# ---------------------------------------------------------------------------------------- what diffusers does not open


def by_peft(model: Path, config) -> tuple[UNet2DConditionModel, dict[str, Tensor]]:
    """A U-Net with an adapter of peft, random, and the adapter's weights."""
    torch.manual_seed(1)
    unet = inject_adapter_in_model(config, UNet2DConditionModel.from_pretrained(model / "unet"), "default")
    for name, parameter in unet.named_parameters():
        if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
            parameter.data = torch.randn_like(parameter) * 0.3
        elif "magnitude" in name:
            parameter.data = parameter * (1 + 0.2 * torch.rand_like(parameter))
    return unet, get_peft_model_state_dict(unet)


ALSO_CONV = ["to_q", "to_out.0", "conv1"]
CONFIGS = {
    "loha": LoHaConfig(r=2, alpha=1, target_modules=ALSO_CONV), "loha wide": LoHaConfig(r=8, alpha=4, target_modules=ALSO_CONV),
    "loha tucker": LoHaConfig(r=2, alpha=2, target_modules=ALSO_CONV, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=1, alpha=2, target_modules=ALSO_CONV), "lokr whole": LoKrConfig(r=9, alpha=3, target_modules=ALSO_CONV),
    "lokr both": LoKrConfig(r=1, alpha=3, target_modules=ALSO_CONV, decompose_both=True),
    "lokr tucker": LoKrConfig(r=1, alpha=3, target_modules=ALSO_CONV, use_effective_conv2d=True),
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=ALSO_CONV), "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["to_k"]),
    "patterns": LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_v"], rank_pattern={"to_v": 2}, alpha_pattern={"to_v": 7}),
    "dora": LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=ALSO_CONV),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders_of_peft_draw_what_peft_draws(pipe, model, tmp_path, kind):
    config = CONFIGS[kind]
    unet, state = by_peft(model, config)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save({f"base_model.model.{name}": value for name, value in state.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    mine = used(pipe, adapters.find_adapter(folder))
    pipe.unet = unet
    close(mine, answer(pipe))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_files_of_lycoris(pipe, model, tmp_path, kind):
    """The same numbers under the names of kohya, with their alpha beside them."""
    unet, state = by_peft(model, CONFIGS[kind])
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        key = "lora_unet_" + layer.replace(".", "_")
        found |= {f"{key}.{part}": value, f"{key}.alpha": torch.tensor(float(CONFIGS[kind].alpha))}
    mine = used(pipe, save(found, tmp_path / f"{kind}.safetensors"))
    pipe.unet = unet
    close(mine, answer(pipe))


@pytest.mark.parametrize("axis", [0, 1])
def test_dora_of_kohya(pipe, tmp_path, axis):
    """Each row (or column, as LyCORIS has it by default) of W + B A gets the length of dora_scale;
    the scale mixes with the model's own weight.
    """
    torch.manual_seed(0)
    attention = {name: weight.detach().clone() for name, weight in layers(pipe.unet, ENDS).items()}
    state = kohya(attention)
    for name, weight in attention.items():
        state[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = 1.3 * weight.norm(dim=1 - axis, keepdim=True)
    path, before = save(state, tmp_path / "dora.safetensors"), answer(pipe)
    by_hand = StableDiffusionPipeline.from_pretrained(pipe.name_or_path)
    for name, weight in attention.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        moved = weight + ALPHA / R * state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        merged = moved / moved.norm(dim=1 - axis, keepdim=True) * state[f"{key}.dora_scale"]
        by_hand.unet.get_submodule(name).weight.data = weight + 0.5 * (merged - weight)
    close(used(pipe, path, 0.5), answer(by_hand))
    pipe.set_adapters(["1-dora"], [0.0])
    close(answer(pipe), before)


def test_differences_and_tucker(pipe, tmp_path):
    torch.manual_seed(0)
    convs = layers(pipe.unet, (".conv1",))
    state = {}
    for name, weight in convs.items():
        key, (out, into) = f"lora_unet_{name.replace('.', '_')}", weight.shape[:2]
        state |= {
            f"{key}.lora_up.weight": torch.randn(out, R, 1, 1),
            f"{key}.lora_down.weight": torch.randn(R, into, 1, 1),
            f"{key}.lora_mid.weight": 0.1 * torch.randn(R, R, 3, 3),
            f"{key}.alpha": torch.tensor(ALPHA),
        }
    (name, weight), *_ = layers(pipe.unet, (".to_q",)).items()
    state[f"lora_unet_{name.replace('.', '_')}.diff"] = change = 0.1 * torch.randn_like(weight)
    by_hand = StableDiffusionPipeline.from_pretrained(pipe.name_or_path)
    by_hand.unet.get_submodule(name).weight.data += change
    for conv in convs:
        key = f"lora_unet_{conv.replace('.', '_')}"
        up, down, mid = (state[f"{key}.lora_{part}.weight"] for part in ("up", "down", "mid"))
        by_hand.unet.get_submodule(conv).weight.data += (
            ALPHA / R * torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
        )
    close(used(pipe, save(state, tmp_path / "a.safetensors")), answer(by_hand))


def test_alpha_in_the_header_of_a_file(pipe, tmp_path):
    """Where diffusers keeps rank and alpha since 0.34."""
    attention = layers(pipe.unet, (".to_q",))
    torch.manual_seed(0)
    pairs = {
        f"unet.{name}.lora_{end}.weight": value
        for name, weight in attention.items()
        for end, value in zip("AB", pair(weight), strict=True)
    }
    about = json.dumps({"unet.r": R, "unet.lora_alpha": 2 * R, "unet.alpha_pattern": {}})
    mine = used(pipe, save(pairs, tmp_path / "a.safetensors", lora_adapter_metadata=about))
    other = StableDiffusionPipeline.from_pretrained(pipe.name_or_path)
    doubled = {name: 2 * value if "lora_B" in name else value for name, value in pairs.items()}
    close(mine, used(other, save(doubled, tmp_path / "b.safetensors")))


# -------------------------------------------------------------------------------------------------------- what is none


def test_refusals_name_what_was_found(pipe, tmp_path):
    def refused(state: dict[str, Tensor], says: str, name: str = "x.safetensors") -> None:
        with warnings.catch_warnings(), pytest.raises(UserError, match=says) as problem:
            warnings.simplefilter("error")
            adapters.load_adapters(pipe, [save(state, tmp_path / name)])
        assert "\n" not in str(problem.value)

    (name, weight), *_ = layers(pipe.unet, (".to_q",)).items()
    key, (down, up) = f"lora_unet_{name.replace('.', '_')}", pair(weight)
    refused(
        {"model.diffusion_model.input_blocks.0.0.weight": down, "first_stage_model.decoder.conv_in.weight": up},
        "it holds a .*, where one of LoRA",
    )
    refused({"emb_params": torch.zeros(2, 8)}, "a textual inversion")
    refused(
        {f"{key}.oft_blocks": down, f"{key}.lora_down.weight": down},
        "it holds .*oft_blocks, and what is read here are LoRA",
    )
    refused({f"{key}.lora_down.weight": down}, f"not whole: its adapter for {name} lacks up beside down")
    refused(
        {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up[:-1]},
        f"another model: its adapter for {name} is for a width of",
    )
    refused({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up[:, :-1]}, "the ranks 3 and 2 differ")
    refused(
        {f"{key}x.lora_down.weight": down, f"{key}x.lora_up.weight": up},
        "has an adapter for the layer .*to_qx, which this U-Net does not have",
    )
    refused({f"{key}.hada_w1_a": up, f"{key}.hada_w1_b": down}, "lacks hada_w2_a")
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    save(
        {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="describes an adapter of kind IA3"):
        adapters.load_adapters(pipe, [adapters.find_adapter(folder)])


def test_what_the_library_did_not_load_is_noticed(pipe, tmp_path, monkeypatch):
    path = save(kohya(layers(pipe.unet, ENDS)), tmp_path / "a.safetensors")
    monkeypatch.setattr(type(pipe), "load_lora_weights", lambda self, state, adapter_name: None)
    with pytest.raises(UserError, match=r"diffusers has loaded 0 of the \d+ layers"):
        adapters.load_adapters(pipe, [path])

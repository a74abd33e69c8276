"""What a file of weights holds, by the names of its weights."""

import re
from dataclasses import dataclass

from torch import Tensor

TEXT_WIDTHS = (768, 1024, 1280)  # of the text encoders of Stable Diffusion 1.x, 2.x and XL
UNET, VAE = "model.diffusion_model.", "first_stage_model."  # how the names of CompVis begin
TEXT, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
TEXT_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


@dataclass(frozen=True)
class FileKind:
    """name: one of those that kind_of returns. says: what the file holds, for a sentence.
    advice: what to do with it instead.
    """

    name: str
    says: str
    advice: str = ""


# --------------------------------------------------------------------------------------------------- what is in a file


INVERSION = FileKind(
    "inversion",
    "a textual inversion: the embedding of a word",
    "diffusers' load_textual_inversion adds it to a pipeline",
)
OTHER = "load it with from_single_file of its pipeline in diffusers, and give the folder that save_pretrained writes"
OF_DIFFUSERS = "give the folder that holds it and its config.json"
KINDS = (  # an expression for names of weights, and the kind of a file with such a name; the first one counts
    (
        r"lora_up|lora_down|\.lora_[AB]\.|[_.]lora\.(up|down)|lora_linear_layer|hada_w1|lokr_w",
        FileKind("lora", "a LoRA or a similar adapter", "05_finetune_diffusers/lora.py --use opens it"),
    ),
    ("^(string_to_param|emb_params|string_to_token)", INVERSION),
    (
        r"^(control_model\.|controlnet_|input_hint_block\.)",
        FileKind("controlnet", "a ControlNet", "05_finetune_diffusers/controlnet.py --use opens the folder of one"),
    ),
    (r"conditioner\.embedders\.", FileKind("xl", "a checkpoint of Stable Diffusion XL")),
    (r"\.joint_blocks\.", FileKind("other", "a checkpoint of Stable Diffusion 3", OTHER)),
    (r"double_blocks\.", FileKind("other", "a checkpoint of FLUX", OTHER)),
    (r"^model\.diffusion_model\.", FileKind("sd", "a checkpoint of Stable Diffusion")),
    (r"encoder\.down\.0\.block\.0\.|^first_stage_model\.", FileKind("vae", "an autoencoder alone")),
    (r"^input_blocks\.0\.", FileKind("unet", "a U-Net alone, without autoencoder and text encoder")),
    (
        r"^encoder\.down_blocks\.",
        FileKind("diffusers-vae", "an autoencoder under the names of diffusers", OF_DIFFUSERS),
    ),
    (
        r"^(down_blocks|time_embedding)\.",
        FileKind("diffusers-unet", "a U-Net under the names of diffusers", OF_DIFFUSERS),
    ),
    (r"token_embedding\.weight|word_embeddings\.weight", FileKind("text", "a text encoder alone")),
)


def kind_of(state: dict[str, Tensor]) -> FileKind:
    """What the names of the weights show: one of KINDS, or unknown."""
    if not state:
        return FileKind("unknown", "no weights")
    if is_embedding(state):
        return INVERSION
    for expression, kind in KINDS:
        if any(re.search(expression, name) for name in state):
            closer = {"sd": sd_kind, "xl": xl_kind}.get(kind.name)
            return closer(state) if closer else kind
    shown = ", ".join(sorted(state)[:2])
    return FileKind("unknown", f"weights of no kind that is known here, the first are {shown}")


def is_embedding(state: dict[str, Tensor]) -> bool:
    """Whether these are vectors of one word, for one text encoder or the two of Stable Diffusion XL, under the name of
    the word or of the encoder.

    Weights of a layer are no vectors of a word: their names have a dot, or end in weight or bias.
    """
    layers = any("." in name or name.endswith(("weight", "bias")) for name in state)
    return (
        len(state) <= 2
        and not layers
        and all(value.ndim in (1, 2) and value.shape[-1] in TEXT_WIDTHS for value in state.values())
    )


def sd_kind(state: dict[str, Tensor]) -> FileKind:
    """The kind of a file with a U-Net under CompVis's names: with an autoencoder and a text encoder, or without."""
    wanted = {"an autoencoder": (VAE,), "a text encoder": (TEXT, OPEN_CLIP)}
    lacks = [what for what, prefixes in wanted.items() if not any(name.startswith(prefixes) for name in state)]
    if "a text encoder" in lacks and not any(".attn2.to_k.weight" in name for name in state if name.startswith(UNET)):
        return FileKind("other", "a diffusion model that reads no text, under the names of CompVis")
    if f"{UNET}label_emb.weight" in state or f"{UNET}label_emb.0.0.weight" in state:
        return FileKind("other", "a U-Net that is conditioned on more than a text, such as that of an upscaler")
    version = "2.x" if f"{OPEN_CLIP}token_embedding.weight" in state else "1.x"
    if lacks:
        return FileKind(
            "unet",
            f"a U-Net of Stable Diffusion, without {' and without '.join(lacks)}",
            "take a file that has all three parts",
        )
    return FileKind("sd", f"a checkpoint of Stable Diffusion {version} (U-Net, autoencoder, text encoder)")


def xl_kind(state: dict[str, Tensor]) -> FileKind:
    """The kind of a file with a text encoder under the names of XL: XL itself, its refiner, or a part."""
    lacks = [
        what
        for what, prefix in (("a U-Net", UNET), ("an autoencoder", VAE))
        if not any(name.startswith(prefix) for name in state)
    ]
    if lacks:
        return FileKind(
            "other",
            f"a part of Stable Diffusion XL, without {' and without '.join(lacks)}",
            "take a file that has all parts",
        )
    if not any(name.startswith(OPEN_CLIP_XL) for name in state):
        return FileKind("other", "the refiner of Stable Diffusion XL, or a model with one text encoder", OTHER)
    return FileKind(
        "xl",
        "a checkpoint of Stable Diffusion XL (U-Net, autoencoder, two text encoders)",
        "chapter 5's programs generate.py and lora.py open it",
    )

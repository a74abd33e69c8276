"""What the tests of chapter 6 share: small models, scenes, and the flags of short runs."""

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from scipy.ndimage import gaussian_filter

from common.data.dishes.dataset import dish
from common.data.dishes.draw import draw
from common.data.dishes.menu import DISHES
from common.models.pipeline import SamplingConfig
from inpaint_gif.animation.camera import CameraPath, Move, paint, render_frames
from inpaint_gif.animation.canvas import FilmCanvas, Window
from inpaint_gif.animation.timing import close_loop, frame_times
from inpaint_gif.clip import dish_names, formats
from inpaint_gif.clip.dish_names import LEARNED
from inpaint_gif.clip.formats import CLIPCheckpoint, CLIPConfig
from inpaint_gif.inpainting import edge_fill

TRAIN_CLIP, EVALUATE_CLIP, CONVERT_CLIP = (
    f"06_inpaint_gif/{name}_clip.py" for name in ("train", "evaluate", "convert")
)
TRAIN_DISH, TRAIN_INPAINT, TRAIN_CONTROLNET = (
    f"06_inpaint_gif/train_{name}.py" for name in ("text2dish", "inpaint", "controlnet")
)
MAKE_GIF, GENERATE, EVALUATE_GIF = (f"06_inpaint_gif/{name}.py" for name in ("make_gif", "generate", "evaluate_gif"))
SIZE = 64
TEXTS = [
    "番茄炒蛋",
    "一盘西红柿炒鸡蛋，木桌",
    "",
    "米饭 rice",
    "龘龘",
    "[SEP][MASK] [PAD]",
    "ÉCLAIR 2",
    "　全角　空格\t\n",
    "长" * 80,
    "番茄（大）、蛋！",
]
WEIGHTS = "model/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
QUICK = SamplingConfig(guidance_scale=2.0, sampler="ddim:3")
TINY_CLIP = [
    "--size",
    32,
    "--patch",
    16,
    "--width",
    32,
    "--layers",
    1,
    "--text-width",
    32,
    "--text-layers",
    1,
    "--dim",
    16,
    "--batch-size",
    6,
    "--device",
    "cpu",
    "--precision",
    "no",
]
DRAWN = [*TINY_CLIP, "--n", 12, "--held-out", 8]
TINY_RUN = [
    "--batch-size",
    4,
    "--device",
    "cpu",
    "--precision",
    "no",
    "--sampler",
    "ddim:2",
    "--sample-every",
    100,
    "--save-every",
    2,
    "--steps",
    4,
]


def texture(size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """A picture with something everywhere, coarse and fine."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal((3, size, size)), (0, s, s)) * s for s in (1.2, 4)]
    return torch.from_numpy(np.tanh(1.5 * sum(layers))).float()


def film_of(
    text: str, frames: int = 12, loop: str = "once", ease: str = "linear", picture=None, backend=edge_fill.reflect
):
    """The film of a move, its path and what was painted for it."""
    picture = texture() if picture is None else picture
    path = CameraPath.plan(Move.parse(text), *picture.shape[1:])
    path = path.around() if loop == "round" else path
    canvas = FilmCanvas(picture)
    keyframes = list(paint(canvas, path, backend))
    return (
        list(close_loop(render_frames(canvas, path, frame_times(frames, loop, ease, path.returns)), frames)),
        path,
        keyframes,
    )


def scene(window: Window, waves: int = 12, fine: float = 0.35) -> torch.Tensor:
    """A plane without end, seen through a window:
    waves, so that it is known exactly at any place. fine: radians a pixel
    """
    rng = np.random.default_rng(3)
    steps = (np.arange(SIZE) + 0.5 - SIZE / 2) * window.scale
    x, y = window.x + steps, window.y + steps[:, None]
    all_of_them = [
        np.sin(a * x + b * y + c) for a, b, c in rng.uniform([-fine, -fine, 0], [fine, fine, 6.3], (waves, 3))
    ]
    return torch.from_numpy(sum(all_of_them) / waves).float().expand(3, -1, -1)


def photograph(seed: int = 0, size: int = 64) -> torch.Tensor:
    """A drawn dish, (3, size, size) in [-1, 1]."""
    attributes, pose = dish(0, "test", seed)
    return torch.from_numpy(draw(attributes, size, pose)).float() / 127.5 - 1


def right_hole(size: int = 64, columns: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, :, -columns:] = 1
    return mask


def tiny_clip(dim: int = 24, seed: int = 0) -> formats.CLIPCheckpoint:
    """A CLIP that was never trained, with the vocabulary of the menu."""
    words = dish_names.vocabulary([name for names in LEARNED.values() for name in names])
    shape = formats.CLIPConfig(
        embed_dim=dim,
        image_resolution=32,
        vision_layers=1,
        vision_width=32,
        vision_patch_size=16,
        vision_head_width=32,
        vocab_size=len(words),
        text_hidden_size=32,
        text_intermediate_size=32,
        text_num_attention_heads=1,
        text_num_hidden_layers=1,
        text_max_position_embeddings=52,
        text_initializer_range=0.1,
    )
    torch.manual_seed(seed)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return formats.CLIPCheckpoint(shape, formats.from_transformers(net.state_dict()), words, "a test")


def shaken(net: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """With every weight moved, so that nothing is one or zero by its birth and no mistake can hide there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
        net.logit_scale.fill_(2.5)
    return net.eval()


def small_vocab(texts=TEXTS[:4]) -> tuple[str, ...]:
    return dish_names.vocabulary(texts)


def small_config(words, **changes) -> CLIPConfig:
    sizes = {
        "embed_dim": 24,
        "image_resolution": 32,
        "vision_layers": 2,
        "vision_width": 64,
        "vision_patch_size": 8,
        "vision_head_width": 32,
        "vocab_size": len(words),
        "text_hidden_size": 48,
        "text_intermediate_size": 80,
        "text_num_attention_heads": 3,
        "text_num_hidden_layers": 2,
        "text_max_position_embeddings": 52,
    }
    return CLIPConfig(**sizes | changes)


def wide(form_words=None) -> CLIPCheckpoint:
    """With heads of 64, as in every published model: its sizes can be read off its weights."""
    words = small_vocab()
    shape = small_config(
        words,
        vision_width=64,
        vision_head_width=64,
        text_hidden_size=128,
        text_num_attention_heads=2,
        text_intermediate_size=96,
    )
    torch.manual_seed(1)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**shape.to_transformers()))
    return CLIPCheckpoint(shape, formats.from_transformers(shaken(net).state_dict()), words, "a test")


def attributes_of(dish: str) -> dict[str, str]:
    entry = DISHES[dish]
    vessel = entry.vessels[0]
    glaze = "none" if vessel in ("steamer", "clay pot") else "white"
    return {"dish": dish, "style": entry.style, "vessel": vessel, "glaze": glaze, "table": "wood"}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)

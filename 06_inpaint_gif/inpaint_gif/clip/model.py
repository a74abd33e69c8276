"""Chinese names and pictures in one space: a Chinese CLIP, computed by the package cn_clip or by `transformers`.

    clip = load_clip("pretrained")
    clip.encode_text(["番茄炒蛋", "米饭"])      # (2, D) unit vectors
    clip.encode_image(images)                 # (B, D) unit vectors, of images in [-1, 1]

cn_clip is the default backend, and `transformers` the second one. Both read the same weights, and their vectors differ by about 1e-7.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from common.errors import UserError, explain
from common.io import hub
from common.io.state_dict import build_strictly
from common.io.weight_files import look_for_weights
from common.models.text.hub import find_encoder
from common.models.text.tokenizer import Tokenizer
from inpaint_gif.clip.formats import (
    MEAN,
    SPECIAL,
    STD,
    WEIGHTS,
    WORDS,
    Form,
    read_checkpoint,
    read_folder,
    read_words,
    to_transformers,
)

DOORS = ("cn_clip", "transformers")  # the backends; the first is the default
INSTALL = "pip install --no-deps -r requirements-cn-clip.txt"
LENGTH = 52  # tokens of a text, begin and end included, as in cn_clip
PRETRAINED = Path(__file__).parents[2] / "pretrained" / "clip"
CACHE = Path("~/.cache/clip")  # where cn_clip keeps what it downloads
PUBLISHED = {  # where cn_clip's own models lie on the hub, except RN50, which is no vision transformer
    "ViT-B-16": ("OFA-Sys/chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    "ViT-L-14": ("OFA-Sys/chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    "ViT-L-14-336": ("OFA-Sys/chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
    "ViT-H-14": ("OFA-Sys/chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
}


def look(images: Tensor, size: int) -> Tensor:
    """Images in [-1, 1], (B, 1 or 3, H, W) -> what the network looks at: (B, 3, size, size), resized and with CLIP's colours."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"the CLIP encodes grey or RGB images (B, 1 or 3, H, W), not {tuple(images.shape)}")
    if images.shape[-2:] != (size, size):
        images = tv.resize(images, [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    colours = ((images.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)  # 0 to 1
    return (colours - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(STD).view(3, 1, 1)


def short(ids: Tensor) -> Tensor:
    """(B, M) -> without the columns that are padding in every row. Padding is hidden from the network: nothing changes but the time."""
    return ids[:, : int((ids != 0).sum(1).max())]


# ----------------------------------------------------------------------------------------------------------- the backends


class CnClip(nn.Module):
    """The network and the tokenizer of the package cn_clip."""

    def __init__(self, form: Form, length: int):
        super().__init__()
        FullTokenizer, CLIP = imported()
        with tempfile.TemporaryDirectory() as folder:  # it reads its vocabulary from a file, once
            file = Path(folder) / WORDS
            file.write_text("\n".join(form.words) + "\n", encoding="utf-8")
            self.words = FullTokenizer(str(file))
        self.length = length
        self.clip = build_strictly(lambda: CLIP(**asdict(form.shape), tokenizer=self.words), form.state, form.source)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """As cn_clip.clip.tokenize does, which knows no other vocabulary than its own. (B, length)"""
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        begin, end = self.words.convert_tokens_to_ids(["[CLS]", "[SEP]"])
        for row, text in zip(rows, texts, strict=True):
            pieces = self.words.convert_tokens_to_ids(self.words.tokenize(text))[: self.length - 2]
            row[: len(pieces) + 2] = torch.tensor([begin, *pieces, end])
        return rows

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.encode_text(ids)

    def image(self, pixels: Tensor) -> Tensor:
        return self.clip.encode_image(pixels)


class Transformers(nn.Module):
    """ChineseCLIPModel and BertTokenizer of the library `transformers`."""

    def __init__(self, form: Form, length: int):
        super().__init__()
        self.words = words_of(form.words, length)
        self.clip = chinese_clip(form)

    def ids(self, texts: Sequence[str]) -> Tensor:
        return self.words(texts)

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output

    def image(self, pixels: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixels).pooler_output


def chinese_clip(form: Form) -> nn.Module:
    """A ChineseCLIPModel with these weights, every one of them checked."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    config = ChineseCLIPConfig(**form.shape.to_transformers())
    return build_strictly(lambda: ChineseCLIPModel(config), to_transformers(form.state), form.source)


def words_of(words: Sequence[str], length: int) -> Tokenizer:
    """BERT's tokenizer with this vocabulary, in the course's interface: begin, a piece for each character, end, padding."""
    from transformers import BertTokenizer

    backend = BertTokenizer(vocab={word: i for i, word in enumerate(words)}).backend_tokenizer
    backend.encode_special_tokens = True  # a "[SEP]" that somebody types is five characters, as it is to cn_clip
    return Tokenizer(backend, length, SPECIAL[0])


# ------------------------------------------------------------------------------------------------------- what others use


class ChineseClip:
    """dim is D; size is the side of the images it looks at; scale is one over the temperature of its comparisons."""

    def __init__(self, form: Form, door: str = DOORS[0], length: int = LENGTH):
        self.backend, self.form = chosen_door(door), form
        self.dim, self.size = form.shape.embed_dim, form.shape.image_resolution
        self.length = min(length, form.shape.text_max_position_embeddings)
        self.network = {"cn_clip": CnClip, "transformers": Transformers}[self.backend](form, self.length).requires_grad_(False).eval()
        self.tokenizer = words_of(form.words, self.length)  # for remarks
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> "ChineseClip":
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @property
    def scale(self) -> float:
        return float(self.network.clip.logit_scale.exp())

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """(B, D) unit vectors."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts; a lone string would be read as one text for each of its characters")
        if not len(texts):
            return torch.zeros(0, self.dim, device=self.device)
        ids = self.network.ids(list(texts))
        return torch.cat([F.normalize(self.network.text(short(part).to(self.device)).float(), dim=-1) for part in ids.split(batch)])

    @torch.no_grad()
    def encode_image(self, images: Tensor, batch: int = 128) -> Tensor:
        """Images in [-1, 1], (B, 1 or 3, H, W) of any size -> (B, D) unit vectors."""
        parts = [look(part.to(self.device).float(), self.size) for part in images.split(batch)] if len(images) else []
        vectors = [F.normalize(self.network.image(part).float(), dim=-1) for part in parts]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.dim, device=self.device)

    def unknown(self, text: str) -> list[str]:
        """The characters of a text that this CLIP has no token for, each once: all of them are one [UNK] to it."""
        return list(dict.fromkeys(c for c in text if not c.isspace() and set(self.tokenizer.backend.encode(c, add_special_tokens=False).tokens) & {"[UNK]"}))


def chosen_door(door: str) -> str:
    """The backend of this name; one that is unknown or not installed is refused."""
    door = DOORS[0] if door == "auto" else door  # earlier runs have the default auto in their config.json
    if door not in DOORS:
        raise UserError(f"unknown backend '{door}'; choose one of {', '.join(DOORS)}")
    if door == DOORS[0] and not installed():
        raise UserError(f"cn_clip is not installed; install it with {INSTALL}, or use --backend transformers, which reads the same weights")
    return door


def installed() -> bool:
    return importlib.util.find_spec("cn_clip") is not None


def imported() -> tuple[type, type]:
    """(FullTokenizer, CLIP) of cn_clip. Its import fails, for instance, beside version 2 of flash_attn."""
    try:
        from cn_clip.clip.bert_tokenizer import FullTokenizer
        from cn_clip.clip.model import CLIP
    except ImportError as problem:
        raise UserError(f"cn_clip is installed, but cannot be imported ({explain(problem)}); use --backend transformers, which reads the same weights") from problem
    return FullTokenizer, CLIP


# ------------------------------------------------------------------------------------------------------------- finding it


def load_clip(name: str | Path = "pretrained", door: str = DOORS[0], device: str | torch.device = "cpu") -> ChineseClip:
    """Open a Chinese CLIP.

    name  "pretrained", the one that this chapter ships
          a folder: a run of train_clip.py, or any Chinese CLIP in the form of `transformers`; or its id on the hub, owner/name
          a checkpoint .pt of cn_clip, fine-tuned or not, with or without FlashAttention; or its state dict as .safetensors
          one of PUBLISHED, such as "ViT-B-16": cn_clip's own, from its cache, else downloaded (190 MB to 1.9 GB)
    door  the backend: "cn_clip" or "transformers"
    """
    door = chosen_door(door)  # before anything is read or downloaded
    return ChineseClip(find_form(str(name)), door).to(device)


def find_form(name: str) -> Form:
    """The weights, sizes and vocabulary of what load_clip calls `name`."""
    path = Path(name).expanduser()
    if name == "pretrained":
        if not (PRETRAINED / "config.json").exists():
            raise UserError(f"{PRETRAINED} is missing; train it with python 06_inpaint_gif/train_clip.py, and give the run folder instead")
        return read_folder(PRETRAINED)
    if name in PUBLISHED:
        return read_checkpoint(*published(name))
    if name == "RN50":
        raise UserError(f"RN50 is a ResNet, and this chapter reads vision transformers; choose one of {', '.join(PUBLISHED)}")
    if path.suffix.lower() in (".pt", ".pth", ".safetensors"):
        return read_checkpoint(path, package_words())
    if path.is_file():
        raise UserError(f"{path} is a file, and its name does not end in .pt, .pth or .safetensors, as that of a checkpoint does")
    if path.is_dir():
        folder = next((f for f in (path, path / "model") if (f / "config.json").exists() and look_for_weights(f)), None)
        if folder is None:
            raise UserError(f"{path} holds no Chinese CLIP: config.json and {WEIGHTS} were expected there or in its subfolder model")
        return read_folder(folder)
    if "/" not in name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        known = ", ".join(("pretrained", *PUBLISHED))
        raise UserError(f"there is no CLIP '{name}'; give a folder, a checkpoint .pt or .safetensors, a hub id such as {PUBLISHED['ViT-B-16'][0]}, or one of {known}")
    return read_folder(find_encoder(name)[0])


def package_words() -> tuple[str, ...] | None:
    """The vocabulary that cn_clip brings along, that of every published model; None where it is not installed."""
    if not installed():
        return None
    return read_words(Path(importlib.util.find_spec("cn_clip").origin).parent / "clip")


def published(name: str) -> tuple[Path, tuple[str, ...]]:
    """A published checkpoint, and its vocabulary: those of cn_clip and of its cache, else the hub's."""
    repository, file = PUBLISHED[name]
    path = fetched(repository, file, name)
    return path, package_words() or read_words(fetched(repository, WORDS, name).parent)


def fetched(repository: str, file: str, name: str) -> Path:
    """A file of the hub, in the folder where cn_clip itself would put it."""
    folder = CACHE.expanduser()
    if (folder / file).is_file():
        return folder / file
    advice = f"copy it there from another machine, {hub.MIRROR}, or use --clip pretrained"
    with hub.asking(f"{name} needs {file}, which is not in {folder}", repository, advice) as api:
        return Path(api.hf_hub_download(repository, file, local_dir=folder))

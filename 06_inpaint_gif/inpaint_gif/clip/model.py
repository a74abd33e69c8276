"""A Chinese CLIP: embeddings of Chinese texts and of images in one space, computed by the package cn_clip or by
`transformers`.

    clip = load_clip("pretrained")
    clip.encode_text(["番茄炒蛋", "米饭"])      # (2, D) unit vectors
    clip.encode_image(images)                 # (B, D) unit vectors, of images in [-1, 1]

Two backends compute the embeddings: cn_clip, the default, and `transformers`. Both read the same weights, and their
embeddings differ by about 1e-7.
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
    VOCAB,
    WEIGHTS,
    CLIPCheckpoint,
    read_checkpoint,
    read_folder,
    read_vocab,
    to_transformers,
)

BACKENDS = ("cn_clip", "transformers")  # the first is the default
INSTALL = "pip install --no-deps -r requirements-no-deps.txt"
LENGTH = 52  # tokens of a text, begin and end included, as in cn_clip
PRETRAINED = Path(__file__).parents[2] / "pretrained" / "clip"
CACHE = Path("~/.cache/clip")  # the folder of cn_clip's own downloads
PUBLISHED = {  # repositories and files of cn_clip's own models on the hub, except RN50, which is no vision transformer
    "ViT-B-16": ("OFA-Sys/chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    "ViT-L-14": ("OFA-Sys/chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    "ViT-L-14-336": ("OFA-Sys/chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
    "ViT-H-14": ("OFA-Sys/chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
}


def preprocess(images: Tensor, size: int) -> Tensor:
    """Resize and normalize images as CLIP expects them: (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, size, size)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"the CLIP encodes grey or RGB images (B, 1 or 3, H, W), not {tuple(images.shape)}")
    if images.shape[-2:] != (size, size):
        images = tv.resize(images, [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    colours = ((images.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)  # 0 to 1
    return (colours - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(STD).view(3, 1, 1)


def trim_padding(ids: Tensor) -> Tensor:
    """Remove the columns that are padding in every row, (B, M) -> (B, m).
    The attention mask hides padding, so only the time changes.
    """
    return ids[:, : int((ids != 0).sum(1).max())]


# ------------------------------------------------------------------------------------------------------------ backends


class CnCLIPNetwork(nn.Module):
    """The network and the tokenizer of the package cn_clip."""

    def __init__(self, checkpoint: CLIPCheckpoint, length: int):
        super().__init__()
        FullTokenizer, CLIP = import_cn_clip()
        with tempfile.TemporaryDirectory() as folder:  # its constructor reads the vocabulary from a file
            file = Path(folder) / VOCAB
            file.write_text("\n".join(checkpoint.vocab) + "\n", encoding="utf-8")
            self.tokenizer = FullTokenizer(str(file))
        self.length = length
        self.clip = build_strictly(
            lambda: CLIP(**asdict(checkpoint.config), tokenizer=self.tokenizer), checkpoint.state, checkpoint.source
        )

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids, (B, length), as from cn_clip.clip.tokenize, which supports cn_clip's own vocabulary only."""
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        begin, end = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
        for row, text in zip(rows, texts, strict=True):
            pieces = self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(text))[: self.length - 2]
            row[: len(pieces) + 2] = torch.tensor([begin, *pieces, end])
        return rows

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.encode_text(ids)

    def image(self, pixels: Tensor) -> Tensor:
        return self.clip.encode_image(pixels)


class TransformersNetwork(nn.Module):
    """ChineseCLIPModel and BertTokenizer of the library `transformers`."""

    def __init__(self, checkpoint: CLIPCheckpoint, length: int):
        super().__init__()
        self.tokenizer = bert_tokenizer(checkpoint.vocab, length)
        self.clip = build_transformers_clip(checkpoint)

    def ids(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(texts)

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output

    def image(self, pixels: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixels).pooler_output


def build_transformers_clip(checkpoint: CLIPCheckpoint) -> nn.Module:
    """Build a ChineseCLIPModel with these weights; every key is checked."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    config = ChineseCLIPConfig(**checkpoint.config.to_transformers())
    return build_strictly(lambda: ChineseCLIPModel(config), to_transformers(checkpoint.state), checkpoint.source)


def bert_tokenizer(vocab: Sequence[str], length: int) -> Tokenizer:
    """BERT's tokenizer with this vocabulary, in the course's interface:
    begin, one token per Chinese character, end, padding.
    """
    from transformers import BertTokenizer

    backend = BertTokenizer(vocab={token: i for i, token in enumerate(vocab)}).backend_tokenizer
    backend.encode_special_tokens = True  # a typed "[SEP]" is five characters, as in cn_clip
    return Tokenizer(backend, length, SPECIAL[0])


# ---------------------------------------------------------------------------------------------------- the public class


class ChineseCLIP:
    """A frozen Chinese CLIP.

    checkpoint  weights, architecture and vocabulary
    backend     one of BACKENDS
    length      tokens of a text, begin and end included; longer texts are cut

    dim is D, the length of an embedding; size is the side of the images in pixels; scale is 1 / temperature.
    """

    def __init__(self, checkpoint: CLIPCheckpoint, backend: str = BACKENDS[0], length: int = LENGTH):
        self.backend, self.checkpoint = check_backend(backend), checkpoint
        self.dim, self.size = checkpoint.config.embed_dim, checkpoint.config.image_resolution
        self.length = min(length, checkpoint.config.text_max_position_embeddings)
        self.network = (
            {"cn_clip": CnCLIPNetwork, "transformers": TransformersNetwork}[self.backend](checkpoint, self.length)
            .requires_grad_(False)
            .eval()
        )
        # finds unknown and cut characters with either backend
        self.tokenizer = bert_tokenizer(checkpoint.vocab, self.length)
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> "ChineseCLIP":
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
        vectors = [self.network.text(trim_padding(part).to(self.device)).float() for part in ids.split(batch)]
        return F.normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: Tensor, batch: int = 128) -> Tensor:
        """Images in [-1, 1], (B, 1 or 3, H, W) of any size -> (B, D) unit vectors."""
        if not len(images):
            return torch.zeros(0, self.dim, device=self.device)
        parts = (preprocess(part.to(self.device).float(), self.size) for part in images.split(batch))
        return F.normalize(torch.cat([self.network.image(part).float() for part in parts]), dim=-1)

    def unknown(self, text: str) -> list[str]:
        """Characters of a text without a token, each once; CLIP reads all of them as [UNK]."""
        encode = self.tokenizer.backend.encode
        characters = dict.fromkeys("".join(text.split()))
        return [c for c in characters if "[UNK]" in encode(c, add_special_tokens=False).tokens]


def check_backend(name: str) -> str:
    """Return the name of the backend; refuse one that is unknown or not installed."""
    name = BACKENDS[0] if name == "auto" else name  # the default in config.json of older runs
    if name not in BACKENDS:
        raise UserError(f"unknown backend '{name}'; choose one of {', '.join(BACKENDS)}")
    if name == BACKENDS[0] and not cn_clip_installed():
        raise UserError(
            f"cn_clip is not installed; install it with {INSTALL}, or use --backend transformers, which reads the same weights"
        )
    return name


def cn_clip_installed() -> bool:
    return importlib.util.find_spec("cn_clip") is not None


def import_cn_clip() -> tuple[type, type]:
    """(FullTokenizer, CLIP) of cn_clip. The import fails, for instance, beside version 2 of flash_attn."""
    try:
        from cn_clip.clip.bert_tokenizer import FullTokenizer
        from cn_clip.clip.model import CLIP
    except ImportError as problem:
        raise UserError(
            f"cn_clip is installed, but cannot be imported ({explain(problem)}); use --backend transformers, which reads the same weights"
        ) from problem
    return FullTokenizer, CLIP


# ------------------------------------------------------------------------------------------------------------- loading


def load_clip(
    name: str | Path = "pretrained", backend: str = BACKENDS[0], device: str | torch.device = "cpu"
) -> ChineseCLIP:
    """Open a Chinese CLIP.

    name     "pretrained", the shipped one
             a folder: a run of train_clip.py, or any Chinese CLIP in the format of `transformers`; or its hub id,
             owner/name a checkpoint .pt of cn_clip, fine-tuned or not, with or without FlashAttention; or its state
             dict as .safetensors one of PUBLISHED, such as "ViT-B-16": cn_clip's own, from its cache, else downloaded
             (190 MB to 1.9 GB)
    backend  one of BACKENDS
    """
    backend = check_backend(backend)  # before anything is read or downloaded
    return ChineseCLIP(find_checkpoint(str(name)), backend).to(device)


def find_checkpoint(name: str) -> CLIPCheckpoint:
    """Weights, architecture and vocabulary of the model that load_clip calls `name`."""
    path = Path(name).expanduser()
    if name == "pretrained":
        if not (PRETRAINED / "config.json").exists():
            raise UserError(
                f"{PRETRAINED} is missing; train it with python 06_inpaint_gif/train_clip.py, and give the run folder instead"
            )
        return read_folder(PRETRAINED)
    if name in PUBLISHED:
        return read_checkpoint(*published_checkpoint(name))
    if name == "RN50":
        raise UserError(
            f"RN50 is a ResNet, and this chapter reads vision transformers; choose one of {', '.join(PUBLISHED)}"
        )
    if path.suffix.lower() in (".pt", ".pth", ".safetensors"):
        return read_checkpoint(path, package_vocab())
    if path.is_file():
        raise UserError(
            f"{path} is a file, and its name does not end in .pt, .pth or .safetensors, as that of a checkpoint does"
        )
    if path.is_dir():
        folder = next(
            (f for f in (path, path / "model") if (f / "config.json").exists() and look_for_weights(f)), None
        )
        if folder is None:
            raise UserError(
                f"{path} holds no Chinese CLIP: config.json and {WEIGHTS} were expected there or in its subfolder model"
            )
        return read_folder(folder)
    if "/" not in name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        known = ", ".join(("pretrained", *PUBLISHED))
        raise UserError(
            f"there is no CLIP '{name}'; give a folder, a checkpoint .pt or .safetensors, a hub id such as {PUBLISHED['ViT-B-16'][0]}, or one of {known}"
        )
    return read_folder(find_encoder(name)[0])


def package_vocab() -> tuple[str, ...] | None:
    """The vocabulary inside the package cn_clip, that of every published model; None if it is not installed."""
    if not cn_clip_installed():
        return None
    return read_vocab(Path(importlib.util.find_spec("cn_clip").origin).parent / "clip")


def published_checkpoint(name: str) -> tuple[Path, tuple[str, ...]]:
    """A published checkpoint and its vocabulary, from cn_clip and its cache if they are there, else from the hub."""
    repository, file = PUBLISHED[name]
    path = download_file(repository, file, name)
    return path, package_vocab() or read_vocab(download_file(repository, VOCAB, name).parent)


def download_file(repository: str, file: str, name: str) -> Path:
    """A file of the hub, in cn_clip's own cache folder."""
    folder = CACHE.expanduser()
    if (folder / file).is_file():
        return folder / file
    advice = f"copy it there from another machine, {hub.MIRROR}, or use --clip pretrained"
    with hub.asking(f"{name} needs {file}, which is not in {folder}", repository, advice) as api:
        return Path(api.hf_hub_download(repository, file, local_dir=folder))

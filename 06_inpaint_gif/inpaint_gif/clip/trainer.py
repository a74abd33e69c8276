"""Training of a Chinese CLIP (train_clip.py): images of dishes and their names,
contrasted until each finds the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from common import viz
from common.cli import pick_device
from common.data import Images, load
from common.data.augmentation import affine
from common.data.registry import DRAWN
from common.errors import UserError
from common.io.pixels import to_float
from common.io.tables import add_row, read_csv
from common.models.text.tokenizer import Tokenizer
from common.random import BatchRandom
from common.training.logging import Due
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import make_accelerator, run_training
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, Names, name_embeddings, training_captions, vocabulary
from inpaint_gif.clip.flags import ARCHITECTURE, CLIPFlags
from inpaint_gif.clip.formats import SPECIAL, CLIPCheckpoint, CLIPConfig, from_transformers, save_folder
from inpaint_gif.clip.loss import contrastive_loss, inverse_temperature
from inpaint_gif.clip.model import (
    LENGTH,
    ChineseCLIP,
    bert_tokenizer,
    build_transformers_clip,
    find_checkpoint,
    preprocess,
    trim_padding,
)
from inpaint_gif.clip.retrieval import caption_queries, centroids, held_out_queries, image_embeddings, top1_accuracy

DISHES = 6000  # default of --n: 75 of each dish
HEAD = 32  # width of an attention head
ROWS = 8  # names in the picture at the end
COLUMNS = ["step", "seconds", "loss", "temperature", "pictures_top1", "names_top1"]  # of quality.csv


def train_clip(flags: CLIPFlags) -> None:
    """Train with settled flags. With --start, the sizes are those of the given model, not of the preset."""
    if flags.start:
        flags = replace(flags, **dict.fromkeys(ARCHITECTURE))
    device = pick_device(flags.device)
    begun = find_checkpoint(str(start_of(flags, flags.start))) if flags.start else None
    if begun is None:
        new_config(flags, len(SPECIAL))  # refuses impossible sizes before any image is drawn
    images = load_training_set(flags, begun.config.image_resolution if begun else flags.size)
    record = record_of(images.train.pixels, images.captions)
    check_record(flags, record)
    texts = [text for some in (*images.captions, *images.names.values()) for text in some]
    checkpoint = begun or new_checkpoint(flags, vocabulary(texts))
    net = DualEncoder(build_transformers_clip(checkpoint))
    accelerator = make_accelerator(flags.precision, device)
    tokenizer = bert_tokenizer(checkpoint.vocab, min(LENGTH, checkpoint.config.text_max_position_embeddings))
    due, table = Due(flags.sample_every), flags.run_dir / "quality.csv"

    def trained(state: State) -> ChineseCLIP:
        return ChineseCLIP(averaged_checkpoint(state.ema, checkpoint), "transformers").to(accelerator.device)

    def measure_if_due(state: State) -> None:
        if due(state) or state.done:
            row = {"step": state.step, "seconds": f"{state.seconds:.1f}", "loss": f"{state.loss:.4f}"}
            quality = {name: f"{value:.4f}" for name, value in measure(trained(state), images).items()}
            add_row(table, row | quality, COLUMNS)

    def finish(state: State) -> dict[str, object]:
        print_quality(read_csv(table)[-1], images)
        found = draw_retrieved(trained(state), images, flags.run_dir / "found.png")
        command = f"python 06_inpaint_gif/evaluate_clip.py --clip {flags.run_dir}"
        return {"what they find": found, "model": flags.run_dir / "model", "more figures": command}

    run_training(
        "06_inpaint_gif/train_clip.py",
        flags,
        net,
        CaptionedImages(images, tokenizer),
        make_loss(flags, checkpoint),
        accelerator,
        record,
        introduction(flags, images, checkpoint, tokenizer, device),
        save=lambda state, folder: save_folder(folder, averaged_checkpoint(state.ema, checkpoint)),
        draw=lambda state, path: None,
        finish=finish,
        on_step=measure_if_due,
        save_start=(lambda folder: save_folder(folder, begun)) if begun else None,
    )


def check_architecture(flags: CLIPFlags) -> None:
    """Refuse sizes beside --start, and widths that are no multiple of an attention head."""
    given = [name for name in ARCHITECTURE if getattr(flags, name) is not None]
    if flags.start and given and not flags.resume:
        raise UserError(f"--start keeps the sizes of that model; leave out --{given[0].replace('_', '-')}")
    for flag, width in (("width", flags.width), ("text-width", flags.text_width)):
        if width is not None and width % HEAD:
            raise UserError(f"--{flag} must be a multiple of {HEAD}, the width of an attention head, not {width}")


def introduction(
    flags: CLIPFlags, images: "CLIPTrainingSet", checkpoint: CLIPCheckpoint, tokenizer: Tokenizer, device: str
) -> str:
    weights, cfg = sum(value.numel() for value in checkpoint.state.values()), checkpoint.config
    unread = sorted({c for some in images.captions for text in some for c in tokenizer.unknown(text)})
    lines = [
        f"{flags.data}: {len(images.train):,} pictures of {len(images.names)} things; a Chinese CLIP with {weights:,} weights, "
        f"{len(checkpoint.vocab)} tokens, {cfg.image_resolution} pixels a side in patches of {cfg.vision_patch_size}, on {device}"
    ]
    if images.drawn:
        lines.append(f"names kept for testing: {'、'.join(HELD_OUT.values())}")
    if unread:
        lines.append(
            f"{len(unread)} characters of the captions are unknown to it, among them {'、'.join(unread[:10])}"
        )
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class CLIPTrainingSet:
    """Images to train and to test on.

    train     training images; their labels (N,) index `names`, and images with one label are positives of each other
    captions  one or more for each training image
    names     {label: all its names}
    test      test images with the same labels
    """

    train: Images
    captions: Sequence[Sequence[str]]
    names: Names
    test: Images

    @property
    def drawn(self) -> bool:
        """Whether these are the drawn dishes, of which names are held out."""
        return self.names is LEARNED


def load_training_set(flags: CLIPFlags, size: int) -> CLIPTrainingSet:
    """Drawn dishes, labelled by dish, or any captioned set, labelled by caption."""
    if flags.data == "dishes":
        n = flags.n or DISHES
        train, test = load("dishes", size, split="train", n=n), load("dishes", size, split="test", n=flags.held_out)
        return CLIPTrainingSet(train, training_captions(n, flags.seed), LEARNED, test)
    train = with_chinese_captions(load(flags.data, size, flags.data_dir, n=flags.n, channels=3, captions=True))
    drawn = flags.held_out if flags.data in DRAWN else None  # no more are drawn than are used
    test = load(flags.data, size, flags.data_dir, "test", n=drawn, channels=3, captions=True)
    test = with_chinese_captions(test.first(min(flags.held_out, len(test))))
    order = {caption: k for k, caption in enumerate(dict.fromkeys(train.captions + test.captions))}
    train, test = (labelled_by_caption(images, order) for images in (train, test))
    return CLIPTrainingSet(
        train, [(caption,) for caption in train.captions], {caption: (caption,) for caption in order}, test
    )


def with_chinese_captions(images: Images) -> Images:
    """The images with Chinese captions if the set has any, else with those that it has."""
    language = "zh" if images.texts and "zh" in images.texts.by else None
    return Images(images.name, images.pixels, captions=images.need_captions(language))


def labelled_by_caption(images: Images, order: dict[str, int]) -> Images:
    labels = torch.tensor([order[caption] for caption in images.captions])
    return Images(images.name, images.pixels, labels, tuple(order), images.captions)


class CaptionedImages:
    """Images and the token ids of their captions, as the training loop reads them."""

    def __init__(self, images: CLIPTrainingSet, tokenizer: Tokenizer):
        self.images = images.train
        ids = tokenizer([text for some in images.captions for text in some])  # (N K, M)
        self.ids = trim_padding(ids).view(len(self.images), len(images.captions[0]), -1).to(torch.int32)  # (N, K, M)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"image": (B, C, H, W) in [-1, 1], "ids": (B, K, M), "dish": (B,)}"""
        pixels, dishes = self.images.pixels[indices], self.images.labels[indices]
        return {"image": to_float(pixels), "ids": self.ids[indices].long(), "dish": dishes}


# -------------------------------------------------------------------------------------------- the network and its loss


def new_config(flags: CLIPFlags, vocabulary_size: int) -> CLIPConfig:
    """The architecture that the flags ask for."""
    return CLIPConfig(
        embed_dim=flags.dim,
        image_resolution=flags.size,
        vision_layers=flags.layers,
        vision_width=flags.width,
        vision_patch_size=flags.patch,
        vision_head_width=HEAD,
        vocab_size=vocabulary_size,
        text_hidden_size=flags.text_width,
        text_intermediate_size=4 * flags.text_width,
        text_num_attention_heads=flags.text_width // HEAD,
        text_num_hidden_layers=flags.text_layers,
        text_max_position_embeddings=LENGTH,
        text_initializer_range=0.02
        * (768 / flags.text_width) ** 0.5,  # BERT's 0.02 is for width 768; at 128 all texts would begin alike
    )


def new_checkpoint(flags: CLIPFlags, vocab: tuple[str, ...]) -> CLIPCheckpoint:
    """An untrained model with this architecture and vocabulary."""
    config = new_config(flags, len(vocab))
    torch.manual_seed(flags.seed)
    net = ChineseCLIPModel(
        ChineseCLIPConfig(**config.to_transformers(), logit_scale_init_value=math.log(1 / flags.temperature))
    )
    return CLIPCheckpoint(config, from_transformers(net.state_dict()), vocab, "a new model")


class DualEncoder(nn.Module):
    """Both encoders of a ChineseCLIPModel as one module."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, ids: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) preprocessed images and (B, M) token ids -> (B, D) and (B,
        D) unit vectors, and 1 / temperature
        """
        texts = self.clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        images = F.normalize(self.encode_image(pixels, kept).float(), dim=-1)
        return images, F.normalize(texts.float(), dim=-1), inverse_temperature(self.clip.logit_scale)

    def encode_image(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        """The image encoder, (B, D). kept (B, K): indices of the patches to use, None for all"""
        vision = self.clip.vision_model
        x = vision.embeddings(pixels)  # (B, 1 + N, W): the class token, the patches
        if kept is not None:
            # (B, 1 + K, W)
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, kept[..., None].expand(-1, -1, x.shape[2]))], 1)
        x = vision.encoder(inputs_embeds=vision.pre_layrnorm(x)).last_hidden_state
        return self.clip.visual_projection(vision.post_layernorm(x[:, 0]))


def averaged_checkpoint(net: DualEncoder, checkpoint: CLIPCheckpoint) -> CLIPCheckpoint:
    """The weights of a trained network as a checkpoint; the temperature has the limit that the loss applies."""
    state = {key: value.detach().cpu().clone() for key, value in from_transformers(net.clip.state_dict()).items()}
    return checkpoint._replace(
        state=state | {"logit_scale": inverse_temperature(state["logit_scale"]).log()}, source="this run"
    )


def make_loss(flags: CLIPFlags, checkpoint: CLIPCheckpoint):
    """The contrastive loss of a batch, with augmented images and one random caption for each."""
    # 1 and 3 in ours, 100 and 102 in the published vocabulary
    unknown, end = (checkpoint.vocab.index("[UNK]"), checkpoint.vocab.index("[SEP]"))

    def loss(net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        x, ids = batch["image"], one_of_each(batch["ids"], draw)  # (B, C, H, W), (B, M)
        ids = hide_characters(ids, draw.rand(ids.numel()).view(ids.shape), flags.unknown, unknown, end)
        x = augment(x, draw) if flags.augment else x
        kept = random_patches(draw, len(x), checkpoint.config, flags.keep)
        images, texts, scale = net(preprocess(x, checkpoint.config.image_resolution), trim_padding(ids), kept)
        # there are no noise levels: u is 0
        return LossTerms(contrastive_loss(images, texts, batch["dish"], scale), torch.zeros(len(x)))

    return loss


def one_of_each(options: Tensor, draw: BatchRandom) -> Tensor:
    """For each sample of the batch one of its K options, at random: (B, K, ...) -> (B, ...)"""
    n = len(options)
    return options[torch.arange(n, device=options.device), (draw.rand(n) * options.shape[1]).long()]


def random_patches(draw: BatchRandom, n: int, config: CLIPConfig, keep: float) -> Tensor | None:
    """A random choice of patches for each image: indices (n, K), or None for all.

    With half of the patches a step costs about half, and the network does not depend on single patches (Li et al.
    2023, FLIP; mask_ratio in cn_clip).
    """
    patches = (config.image_resolution // config.vision_patch_size) ** 2
    number = max(1, round(keep * patches))
    return None if number == patches else draw.rand(n * patches).view(n, patches).argsort(1)[:, :number]


def hide_characters(ids: Tensor, u: Tensor, share: float, unknown: int, end: int) -> Tensor:
    """Replace characters by [UNK] where u < share, so that its embedding is trained;
    never begin, end or padding. ids, u (B, M)
    """
    inside = (ids != 0) & (ids != end)
    inside[:, 0] = False
    return torch.where(inside & (u < share), unknown, ids)


def augment(x: Tensor, draw: BatchRandom) -> Tensor:
    """Random rotation, zoom, shift, mirroring, lighting, tint and blur of each image. (B, C, H, W)

    Blur is included because this CLIP is to classify images that a small diffusion model has drawn.
    """
    n = len(x)
    u = draw.rand(9 * n).view(n, 9)  # each in [0, 1)
    angle, zoom = 1.0 * (u[:, 0] - 0.5), 1.5 ** (u[:, 1] - 0.75)  # within 29 degrees; 0.74 to 1.11 of it in view
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    x = affine(x, angle, zoom, 0.2 * (u[:, 3:5] - 0.5), mirror, outside="reflection")
    light, contrast = 0.3 * (u[:, 5] - 0.5), 0.75 + 0.5 * u[:, 6]
    tint = 0.12 * (draw.rand(n * x.shape[1]).view(n, -1) - 0.5)
    x = x * contrast.view(-1, 1, 1, 1) + light.view(-1, 1, 1, 1) + tint[:, :, None, None]
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return torch.where(u[:, 7].view(-1, 1, 1, 1) < 0.3, torch.lerp(x, blurred, u[:, 8].view(-1, 1, 1, 1)), x).clamp(
        -1, 1
    )


# ------------------------------------------------------------------------------------------------------- measurements


def measure(clip: ChineseCLIP, images: CLIPTrainingSet) -> dict[str, float]:
    """The columns of quality.csv: accuracies on test images and held-out names;
    evaluate_clip.py measures more, with intervals.
    """
    result = {"temperature": 1 / clip.scale}
    if not images.drawn:
        return result | {"pictures_top1": top1_accuracy(*caption_queries(clip, images.test, images.names))}
    vectors, right = image_embeddings(clip, images.test), images.test.labels.to(clip.device)
    names, asked = held_out_queries(clip)
    return result | {
        "pictures_top1": top1_accuracy(vectors, name_embeddings(clip, LEARNED), right),
        "names_top1": top1_accuracy(names, centroids(vectors, right, len(LEARNED)), asked),
    }


def print_quality(row: dict[str, str], images: CLIPTrainingSet) -> None:
    """Print the last row of quality.csv in sentences."""
    print(f"temperature {float(row['temperature']):.3f}")
    print(
        f"{len(images.test)} test pictures: {float(row['pictures_top1']):.1%} are nearest to their own name, of {len(images.names)}"
    )
    if images.drawn:
        print(
            f"{len(HELD_OUT)} held-out names: {float(row['names_top1']):.1%} are nearest to pictures of their own dish, of {len(LEARNED)}"
        )


def draw_retrieved(clip: ChineseCLIP, images: CLIPTrainingSet, path: Path, columns: int = 8) -> Path:
    """A row for each of some names: the nearest test images, the nearest first. The names are printed."""
    names = (list(HELD_OUT.values()) if images.drawn else list(dict.fromkeys(images.test.captions)))[:ROWS]
    print("\n".join(f"  row {k}: {name}" for k, name in enumerate(names, 1)))
    cosines = clip.encode_text(names) @ image_embeddings(clip, images.test).T  # (names, images)
    columns = min(columns, len(images.test))
    chosen = cosines.topk(columns).indices.cpu()  # (names, columns)
    return viz.save_picture(viz.grid(to_float(images.test.pixels[chosen.flatten()]), columns), path)

"""What train_clip.py does once its flags are settled: draw or load pictures, pair them with names, train, measure, save."""

import csv
import io
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from common import viz
from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.data.dishes.dataset import dish
from common.data.drawn import CAPTION, generator
from common.data.registry import DRAWN
from common.io.files import write_atomically, write_folder
from common.io.pixels import to_float
from common.models.text.tokenizer import Tokenizer
from common.random import BatchRandom
from common.training.logging import Due, logged
from common.training.loop import LossTerms, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, Names, captions_of, vectors_of, vocabulary
from inpaint_gif.clip.formats import SPECIAL, Form, Shape, from_transformers, save_folder
from inpaint_gif.clip.loss import contrast, sharpness
from inpaint_gif.clip.model import LENGTH, ChineseClip, chinese_clip, find_form, look, short, words_of
from inpaint_gif.clip.retrieval import caption_queries, centres, held_out_queries, picture_vectors, share_found

DISHES = 6000  # dishes, where --n is left open: 75 of each
VARIANTS = 8   # captions of each drawn dish; a step takes one of them
HEAD = 32      # width of an attention head
ROWS = 8       # of the picture at the end: so many names
COLUMNS = ["step", "seconds", "loss", "temperature", "pictures_top1", "names_top1"]  # of quality.csv


@dataclass(frozen=True)
class Material:
    """What is learned from, and what is measured on.

    pictures  to learn from; their labels say what belongs together: (N,) numbers into `names`
    captions  for each of them, one or several
    names     {what it is: all it is called}
    test      pictures to measure on, labelled alike
    """

    pictures: Images
    captions: Sequence[Sequence[str]]
    names: Names
    test: Images

    @property
    def drawn(self) -> bool:
        return self.names is LEARNED


def fit_clip(args) -> None:
    """Train as `args` (train_clip.Args, settled) says."""
    device = pick_device(args.device)
    form = begun = find_form(str(start_of(args, args.start))) if args.start else None
    if form is None:
        new_shape(args, len(SPECIAL))  # sizes that do not fit each other are refused before any picture is drawn
    material = gather(args, form.shape.image_resolution if form else args.size)
    record = record_of(material.pictures.pixels, material.captions)
    check_record(args, record)
    form = form or new_form(args, vocabulary([text for some in (*material.captions, *material.names.values()) for text in some]))
    net = Pairs(chinese_clip(form))
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    words = words_of(form.words, min(LENGTH, form.shape.text_max_position_embeddings))
    cfg = TrainConfig(out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, save_every=args.save_every, seed=args.seed)
    states = train(net, Paired(material, words), make_loss(args, form), cfg, accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes
            pass
        return
    keep_settings(args, record, (lambda folder: save_folder(folder, begun)) if begun else None)
    introduce(args, material, form, words, device)

    due = Due(None)
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            if state.saved:
                write_folder(args.out / "model", lambda folder, form=form_of(state.ema, form): save_folder(folder, form))
            if due(state) or state.done:
                row = {"step": state.step, "seconds": f"{state.seconds:.1f}", "loss": f"{state.loss:.4f}"}
                clip = ChineseClip(form_of(state.ema, form), "transformers").to(accelerator.device)
                add_row(args.out / "quality.csv", row | {name: f"{value:.4f}" for name, value in measure(clip, material).items()})

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 06_inpaint_gif/train_clip.py --resume {args.out}")
    else:
        show(args, state, clip, material)


# ------------------------------------------------------------------------------------------------------------ the material


def gather(args, size: int) -> Material:
    """Pictures with their captions, and what belongs together: drawings of the same dish, or pictures with the same caption."""
    if args.data == "dishes":
        n = args.n or DISHES
        pictures, test = load("dishes", size, split="train", n=n), load("dishes", size, split="test", n=args.held_out)
        captions = [captions_of(dish(0, "train", i)[0], VARIANTS, generator(CAPTION, args.seed, "train", i)) for i in range(n)]
        return Material(pictures, captions, LEARNED, test)
    asked = {"train": args.n, "test": args.held_out} if args.data in DRAWN else {}  # no more are drawn than are used
    pictures, test = (chinese(load(args.data, size, args.data_dir, split, n=asked.get(split), channels=3)) for split in ("train", "test"))
    pictures, test = pictures.first(args.n), test.first(min(args.held_out, len(test)))
    order = {caption: k for k, caption in enumerate(dict.fromkeys(pictures.captions + test.captions))}
    pictures, test = (labelled(images, order) for images in (pictures, test))
    return Material(pictures, [(caption,) for caption in pictures.captions], {caption: (caption,) for caption in order}, test)


def chinese(images: Images) -> Images:
    """With captions in Chinese, if the set has any, else with those that it has."""
    language = "zh" if images.texts and "zh" in images.texts.by else None
    return Images(images.name, images.pixels, captions=images.need_captions(language))


def labelled(images: Images, order: dict[str, int]) -> Images:
    return Images(images.name, images.pixels, torch.tensor([order[c] for c in images.captions]), tuple(order), images.captions)


class Paired:
    """Pictures and the tokens of their captions, as the training loop asks for them."""

    def __init__(self, material: Material, words: Tokenizer):
        self.pictures = material.pictures
        number = len(material.captions[0])
        ids = words([text for some in material.captions for text in some])                                 # (N K, M)
        self.ids = short(ids).view(len(self.pictures), number, -1).to(torch.int32)                           # (N, K, M)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"image": (B, C, H, W) in [-1, 1], "ids": (B, K, M), "dish": (B,)}"""
        return {"image": to_float(self.pictures.pixels[indices]), "ids": self.ids[indices].long(), "dish": self.pictures.labels[indices]}


# ------------------------------------------------------------------------------------------------- the network and its loss


def new_shape(args, vocabulary_size: int) -> Shape:
    """The sizes that the flags ask for."""
    return Shape(
        embed_dim=args.dim, image_resolution=args.size, vision_layers=args.layers, vision_width=args.width, vision_patch_size=args.patch,
        vision_head_width=HEAD, vocab_size=vocabulary_size, text_hidden_size=args.text_width, text_intermediate_size=4 * args.text_width,
        text_num_attention_heads=args.text_width // HEAD, text_num_hidden_layers=args.text_layers, text_max_position_embeddings=LENGTH,
        text_initializer_range=0.02 * (768 / args.text_width) ** 0.5,  # BERT's 0.02 is for its width; here all texts would begin alike
    )  # fmt: skip


def new_form(args, words: tuple[str, ...]) -> Form:
    """An untrained model of the sizes asked for, whose vocabulary is that of the captions."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    shape = new_shape(args, len(words))
    torch.manual_seed(args.seed)
    net = ChineseCLIPModel(ChineseCLIPConfig(**shape.to_transformers(), logit_scale_init_value=math.log(1 / args.temperature)))
    return Form(shape, from_transformers(net.state_dict()), words, "a new model")


class Pairs(nn.Module):
    """Both halves at once: (B, 3, H, W) what is looked at and (B, M) tokens -> (B, D) and (B, D) unit vectors, and the scale."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, ids: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        texts = self.clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        return F.normalize(self.see(pixels, kept).float(), dim=-1), F.normalize(texts.float(), dim=-1), sharpness(self.clip.logit_scale)

    def see(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        """The image half. kept (B, K): the numbers of the patches that are looked at, None for all of them. (B, D)"""
        eye = self.clip.vision_model
        x = eye.embeddings(pixels)                                                          # (B, 1 + N, W): the class token, the patches
        if kept is not None:
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, kept[..., None].expand(-1, -1, x.shape[2]))], 1)   # (B, 1 + K, W)
        x = eye.encoder(inputs_embeds=eye.pre_layrnorm(x)).last_hidden_state
        return self.clip.visual_projection(eye.post_layernorm(x[:, 0]))


def form_of(net: Pairs, form: Form) -> Form:
    """What has been learned, with a scale that no loss has used beyond its limit."""
    state = {key: value.detach().cpu().clone() for key, value in from_transformers(net.clip.state_dict()).items()}
    return form._replace(state=state | {"logit_scale": sharpness(state["logit_scale"]).log()}, source="this run")


def make_loss(args, form: Form):
    unknown, end = form.words.index("[UNK]"), form.words.index("[SEP]")  # 1 and 3 in ours, 100 and 102 in the published vocabulary

    def loss(net, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        x, ids = batch["image"], batch["ids"]                                  # (B, C, H, W), (B, K, M)
        ids = ids[torch.arange(len(ids), device=ids.device), (draw.rand(len(ids)) * ids.shape[1]).long()]      # (B, M): one of its captions
        ids = hide(ids, draw.rand(ids.numel()).view(ids.shape), args.unknown, unknown, end)
        x = augment(x, draw) if args.augment else x
        kept = some_patches(draw, len(x), form.shape, args.keep)
        images, texts, scale = net(look(x, form.shape.image_resolution), short(ids), kept)
        return LossTerms(contrast(images, texts, batch["dish"], scale), torch.zeros(len(x)))  # no noise levels: all count as the first

    return loss


def some_patches(draw: BatchRandom, n: int, shape: Shape, keep: float) -> Tensor | None:
    """Each image's own random choice of patches: (n, K) numbers, or None for all.

    With half of them hidden a step costs about half, and the network learns not to hang on a single spot (Li et al. 2023, FLIP;
    mask_ratio in cn_clip).
    """
    patches = (shape.image_resolution // shape.vision_patch_size) ** 2
    number = max(1, round(keep * patches))
    return None if number == patches else draw.rand(n * patches).view(n, patches).argsort(1)[:, :number]


def hide(ids: Tensor, luck: Tensor, share: float, unknown: int, end: int) -> Tensor:
    """Some characters become [UNK], so that [UNK] comes to mean: something, I know not what. Never begin, end or padding. (B, M)"""
    inside = (ids != 0) & (ids != end)
    inside[:, 0] = False
    return torch.where(inside & (luck < share), unknown, ids)


def augment(x: Tensor, draw: BatchRandom) -> Tensor:
    """A plate seen anew: turned, nearer or further, moved, mirrored, in another light, and now and then out of focus. (B, C, H, W)

    Blur has its own reason: this CLIP is to judge pictures that a small diffusion model has painted.
    """
    n = len(x)
    u = draw.rand(9 * n).view(n, 9)                                            # each in [0, 1)
    angle, zoom = 1.0 * (u[:, 0] - 0.5), 1.5 ** (u[:, 1] - 0.75)               # within 29 degrees; 0.74 to 1.11 of it in view
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    cos, sin, move = zoom * angle.cos(), zoom * angle.sin(), 0.2 * (u[:, 3:5] - 0.5)
    places = torch.stack([mirror * cos, -sin, move[:, 0], mirror * sin, cos, move[:, 1]], 1).view(n, 2, 3)
    x = F.grid_sample(x, F.affine_grid(places, list(x.shape), align_corners=False), padding_mode="reflection", align_corners=False)
    light, contrasted = 0.3 * (u[:, 5] - 0.5), 0.75 + 0.5 * u[:, 6]
    tint = 0.12 * (draw.rand(n * x.shape[1]).view(n, -1) - 0.5)
    x = x * contrasted.view(-1, 1, 1, 1) + light.view(-1, 1, 1, 1) + tint[:, :, None, None]
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return torch.where(u[:, 7].view(-1, 1, 1, 1) < 0.3, torch.lerp(x, blurred, u[:, 8].view(-1, 1, 1, 1)), x).clamp(-1, 1)


# ------------------------------------------------------------------------------------------------------------ measurements


def measure(clip: ChineseClip, material: Material) -> dict[str, float]:
    """What a run shows of itself on its way, of test pictures and held-out names; evaluate_clip.py says more, with error bars."""
    result = {"temperature": 1 / clip.scale}
    if not material.drawn:
        return result | {"pictures_top1": share_found(*caption_queries(clip, material.test, material.names))}
    vectors, right = picture_vectors(clip, material.test), material.test.labels.to(clip.device)
    names, asked = held_out_queries(clip)
    return result | {
        "pictures_top1": share_found(vectors, vectors_of(clip, LEARNED), right),
        "names_top1": share_found(names, centres(vectors, right, len(LEARNED)), asked),
    }


def add_row(path: Path, row: dict[str, Any]) -> None:
    """One row more in quality.csv. Rows from this step on, of a run that was thrown back to an earlier checkpoint, go."""
    rows = [earlier for earlier in read_rows(path) if int(earlier["step"]) < row["step"]] + [row]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, restval="")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------------- shown


def introduce(args, material: Material, form: Form, words: Tokenizer, device: str) -> None:
    weights = sum(value.numel() for value in form.state.values())
    sizes = form.shape
    captions = [text for some in material.captions for text in some]
    unread = sorted({c for text in captions for c in words.unknown(text)})
    print(f"{args.data}: {len(material.pictures):,} pictures of {len(material.names)} things; a Chinese CLIP with {weights:,} weights, "
          f"{len(form.words)} tokens, {sizes.image_resolution} pixels a side in patches of {sizes.vision_patch_size}, on {device}")  # fmt: skip
    if material.drawn:
        print(f"names kept for testing: {'、'.join(HELD_OUT.values())}")
    if unread:
        print(f"{len(unread)} characters of the captions are unknown to it, among them {'、'.join(unread[:10])}")


def show(args, state, clip: ChineseClip, material: Material) -> None:
    """The end of a run: how good it is, a picture of what names find, and where everything is."""
    row = read_rows(args.out / "quality.csv")[-1]
    print(f"{state.step} steps in {state.seconds:.0f} s of training, temperature {float(row['temperature']):.3f}")
    print(f"{len(material.test)} test pictures: {float(row['pictures_top1']):.1%} are nearest to their own name, of {len(material.names)}")
    if material.drawn:
        print(f"{len(HELD_OUT)} held-out names: {float(row['names_top1']):.1%} are nearest to pictures of their own dish, of {len(LEARNED)}")
    asked = list(HELD_OUT.values()) if material.drawn else list(dict.fromkeys(material.test.captions))
    print("\n".join(f"  row {k}: {name}" for k, name in enumerate(asked[:ROWS], 1)))
    where = {"what they find": draw_found(clip, asked[:ROWS], material.test, args.out / "found.png"), "model": args.out / "model"}
    for what, path in where.items():
        print(f"{what:15} {path}")
    print(f"{'more figures':15} python 06_inpaint_gif/evaluate_clip.py --clip {args.out}")


def draw_found(clip: ChineseClip, names: Sequence[str], images: Images, path: Path, columns: int = 8) -> Path:
    """A row for each name: the pictures nearest to it, the nearest first."""
    cosines = clip.encode_text(names) @ picture_vectors(clip, images).T                        # (names, pictures)
    columns = min(columns, len(images))
    chosen = cosines.topk(columns).indices.cpu()                                               # (names, columns)
    return viz.save_picture(viz.grid(to_float(images.pixels[chosen.flatten()]), columns), path)

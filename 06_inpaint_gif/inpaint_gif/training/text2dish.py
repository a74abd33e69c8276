"""What train_text2dish.py does once its flags are settled: names become vectors, pictures latents, and a U-Net learns from both."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common import viz
from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.data.dishes.dataset import dish
from common.data.drawn import CAPTION, generator
from common.data.registry import DRAWN
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError
from common.io.files import read_json, write_folder, write_json
from common.models.diffusers_vae import load_vae, save_vae
from common.models.model_folder import Model, load_model, same_build, save_model
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL
from common.training.latents import check_fit, check_fit_before, sample
from common.training.logging import Due, logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, captions_of, vectors_of
from inpaint_gif.clip.formats import save_folder
from inpaint_gif.clip.model import ChineseClip, load_clip
from inpaint_gif.clip.retrieval import ranks
from inpaint_gif.clip.trainer import chinese
from inpaint_gif.inpainting.pipeline import READS, Artist, How, NameReader, count, fingerprint, remember_clip, tokens
from inpaint_gif.training.latent_dataset import LatentSet, encoded

DISHES = 8000    # dishes, where --n is left open: 100 of each
VARIANTS = 8    # captions of each drawn dish; a step takes one of them
READING = ("attn2.to_k", "attn2.to_v")  # the weights that look at text: those of another reader mean nothing here


class NamePainter(nn.Module):
    """The U-Net, told a name by its vector. (B, c, h, w) noisy latents, (B,) noise levels, (B, D) vectors -> (B, c, h, w)"""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        return self.unet(x, t, text=tokens(vector))


@dataclass(frozen=True)
class Named:
    """Latents with the vectors of their captions, as the training loop asks for them."""

    latents: LatentSet
    table: Tensor    # (T, D) vectors of all captions there are
    rows: Tensor     # (N, K) which of them belong to each picture

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent": (B, c, h, w), "std": (B, c, h, w), "vectors": (B, K, D)}"""
        return self.latents.batch(indices) | {"vectors": self.table[self.rows[indices]]}


def fit_text2dish(args) -> None:
    """Train as `args` (train_text2dish.Args, settled) says."""
    device = pick_device(args.device)
    begun = start_of(args, args.model)
    clip = load_clip(args.clip if begun == args.model else begun / "clip", args.backend, device)
    if begun != args.model:  # the copy says where the CLIP came from
        clip.form = clip.form._replace(source=read_json(begun / READS)["trained_with"])
    vae = load_vae(begun, device)
    artist = Artist(vae, new_unet(args, vae, clip), *schedule_of(args), False, NameReader(clip))
    artist.schedule.noise_levels(Sampler.parse_plain(args.sampler).steps)  # a number of steps that cannot be is refused now
    check_fit_before(vae, (args.data,), vae.cfg.size, "--model")
    images, captions = gather(args, vae.cfg.size)
    record = record_of(images.pixels, captions)
    check_record(args, record)
    check_fit(vae, images, "--model")
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    data = Named(encoded(vae, images), *vectors_for(clip, captions))
    cfg = TrainConfig(out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, save_every=args.save_every, seed=args.seed)
    states = train(NamePainter(artist.unet), data, NameLoss(args, artist, clip), cfg, accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record, lambda folder: save_text2dish(folder, artist))
    introduce(args, images, artist, clip, device)

    due = Due(args.sample_every)
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            drawn_by = Artist(vae, state.ema.unet, artist.schedule, artist.prediction, False, artist.reader)
            if state.saved:
                write_folder(args.out / "model", lambda folder, artist=drawn_by: save_text2dish(folder, artist))
            if due(state):
                draw_names(drawn_by, args, args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 06_inpaint_gif/train_text2dish.py --resume {args.out}")
    else:
        show(args, state, drawn_by, clip, images)


# ------------------------------------------------------------------------------------------------ what is trained on what


def gather(args, size: int) -> tuple[Images, Sequence[Sequence[str]]]:
    """Pictures, and the captions of each: drawn dishes with names but the held-out ones, or pictures with their own caption."""
    if args.data == "dishes":
        n = args.n or DISHES
        return load("dishes", size, n=n), [captions_of(dish(0, "train", i)[0], VARIANTS, generator(CAPTION, args.seed, "train", i)) for i in range(n)]
    images = chinese(load(args.data, size, args.data_dir, n=args.n if args.data in DRAWN else None, channels=3)).first(args.n)
    return images, [(caption,) for caption in images.captions]


def vectors_for(clip: ChineseClip, captions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """The vectors of all different captions, (T, D), and which of them belong to each picture, (N, K)."""
    number = {text: i for i, text in enumerate(dict.fromkeys(text for some in captions for text in some))}
    return clip.encode_text(list(number)).cpu(), torch.tensor([[number[text] for text in some] for some in captions])


def schedule_of(args) -> tuple:
    """(schedule, prediction) of the model to begin with; an untrained U-Net takes the course's choice."""
    from common.diffusion.schedules import make_schedule

    return (make_schedule("cosine"), "v") if args.scratch else begun_from(args)[1:3]


def begun_from(args) -> Model:
    """The U-Net to begin with; a resumed run has a copy of it."""
    return load_model(start_of(args, args.model))


def new_unet(args, vae: AutoencoderKL, clip: ChineseClip) -> UNet:
    """Untrained with --scratch; else --model's, but for what looks at text."""
    torch.manual_seed(args.seed)
    c, side = vae.cfg.latent_channels, vae.cfg.size // vae.cfg.factor
    if args.scratch:
        return zero_init(UNet(text_unet(side, c, args.widths, clip.dim)))
    other = begun_from(args).net
    if other.cfg.in_channels != c or other.cfg.out_channels != c:
        raise UserError(f"the U-Net in {args.model} takes {other.cfg.in_channels} channels and gives {other.cfg.out_channels}, but the latents of its autoencoder "
                        f"have {c}; choose another --model, or --scratch")  # fmt: skip
    if not other.cfg.text_dim:
        raise UserError(f"the U-Net in {args.model} is not conditioned on text; choose another --model, or --scratch")
    unet = UNet(type(other.cfg)(**vars(other.cfg) | {"text_dim": clip.dim, "size": side}))
    begin_with(unet, other)
    return unet


def begin_with(unet: UNet, other: UNet) -> None:
    """Take over the weights of a U-Net of the same build, but those that look at text."""
    if unlike := same_build(unet, other, free=("size", "text_dim")):
        raise UserError(f"the U-Net of --model has another architecture ({'; '.join(unlike)}); choose another --model, or --scratch")
    state = {key: value for key, value in other.state_dict().items() if not any(part in key for part in READING)}
    unet.load_state_dict(state, strict=False)


class NameLoss:
    """The error of the network's answer, told one of the picture's names, or now and then none. Checkpoints remember the CLIP
    (training.Stateful): to a U-Net the vectors of another one would be another language."""

    def __init__(self, args, artist: Artist, clip: ChineseClip):
        self.args, self.schedule, self.prediction = args, artist.schedule, artist.prediction
        self.clip = {"clip": fingerprint(clip.form), "scaling_factor": artist.vae.cfg.scaling_factor}

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw) -> LossTerms:
        z0, vectors = sample(batch, draw), batch["vectors"]                                          # (B, c, h, w), (B, K, D)
        vector = vectors[torch.arange(len(z0), device=z0.device), (draw.rand(len(z0)) * vectors.shape[1]).long()]      # (B, D): one of its captions
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        vector = drop_captions(vector, torch.zeros_like(vector[0]), draw.rand(len(z0)), self.args.caption_dropout)
        return LossTerms(diffusion_loss(net, self.schedule, self.prediction, z0, u, eps, vector=vector), u)

    def state_dict(self) -> dict:
        return self.clip

    def load_state_dict(self, state: dict) -> None:
        if state != self.clip:
            raise UserError(f"{self.args.out} was trained with another CLIP or autoencoder than it would go on with; put {self.args.out / 'start'} back as it was")


def save_text2dish(folder: Path, artist: Artist, dtype: torch.dtype = torch.float32) -> None:
    """Write the U-Net, how it was trained, its autoencoder, and the CLIP that it reads through."""
    save_model(folder, Model(artist.unet, artist.schedule, artist.prediction, clip_x0=False), dtype)
    save_vae(folder / "vae", artist.vae, dtype)
    save_folder(folder / "clip", artist.reader.clip.form)
    remember_clip(folder, artist.reader.clip)


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_names(artist: Artist, args, path: Path) -> Path:
    """Above as the names are drawn plainly (w = 1), below with guidance, from the same noise."""
    rows = [artist.draw(args.names, How(w=w, sampler=args.sampler), args.seed) for w in (1.0, args.guidance)]
    return viz.save_picture(viz.grid(torch.cat(rows), len(args.names), 260), path)


def recognised(artist: Artist, clip: ChineseClip, names: dict[str, str], how: How, seed: int = 0) -> float:
    """How many pictures of these names, one each, the image half of the CLIP takes for the right dish of the whole menu.

    names  {dish: what to call it}
    """
    pictures = clip.encode_image(artist.draw(list(names.values()), how, seed))
    right = torch.tensor([list(LEARNED).index(d) for d in names], device=pictures.device)
    return float((ranks(pictures, vectors_of(clip, LEARNED), right) == 0).cpu().double().mean())


def introduce(args, images: Images, artist: Artist, clip: ChineseClip, device: str) -> None:
    c, side = artist.vae.cfg.latent_channels, images.size // artist.factor
    begun = "untrained" if args.scratch else f"begun from {args.model}"
    print(f"{args.data}: {len(images):,} images of {images.size}x{images.size} as latents {c} x {side} x {side}; U-Net with {count(artist.unet):,} weights, "
          f"{begun}, told names by vectors of {clip.dim} numbers, on {device}")  # fmt: skip
    for i, name in enumerate(args.names, 1):
        print(f"  picture {i}: {name or '(no name)'}")


def show(args, state: State, artist: Artist, clip: ChineseClip, images: Images) -> None:
    """The end of a run: pictures, what the CLIP takes them for, and where everything is."""
    pictures = {"plain, guided": draw_names(artist, args, args.out / "samples.png"), "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
                "model": args.out / "model"}  # fmt: skip
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    if args.data == "dishes":
        how = How(w=args.guidance, sampler=args.sampler)
        shares = {"learned names": recognised(artist, clip, {d: d for d in LEARNED}, how), "held-out names": recognised(artist, clip, HELD_OUT, how)}
        write_json(args.out / "recognised.json", shares)
        for what, share in shares.items():
            print(f"{what:18} {share:.1%} of the pictures are taken for the right dish of {len(LEARNED)} by the CLIP")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f'{"a film":18} python 06_inpaint_gif/make_gif.py "{args.names[0]}" --dish {args.out}')

"""What a training is measured by: the same prompts, noises and test images before and after it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from common.data import Images
from common.data.creatures.attributes import NAMES, VALUES
from common.data.registry import DRAWN
from common.evaluate.distances import Estimate, bootstrap
from common.io.files import write_json
from common.io.pixels import to_float
from common.random import BatchRandom
from common.training.loop import State
from common.viz import save_picture
from finetune_diffusers.data.edges import agreement, edges
from finetune_diffusers.data.latent_dataset import cut, encode, load_captioned
from finetune_diffusers.data.styles import FRINGE, SUBJECT, Style, stray, styled_caption, styled_pixels
from finetune_diffusers.models import sheet
from finetune_diffusers.training.trainer import Denoising, Tuner, paint, shown

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

COLUMNS = 8     # pictures in a sheet of edges
REPEATS = 8     # noise levels and noises at which each test image is tried
NOISES = 1_000_003  # a seed apart from that of the training, whose noises these are not


def mean_of(values: Tensor) -> Estimate:
    """Mean of (N,) numbers, one for each picture, with its 95 % interval."""
    return bootstrap(lambda some: float(some.mean()), values.cpu().double(), times=1000)


class Exam(ABC):
    """Measures by name, for each sitting by name: {"base": {"denoising error": Estimate, ...}, "tuned": ...}, and the pictures.

    prompts  the validation prompts, drawn at every sitting

    An exam of one kind says what it measures, and, where the prompts alone do not say it, what is drawn.
    """

    def __init__(self, args, pipe: "StableDiffusionPipeline", prompts: Sequence[str], size: int, accelerator: Accelerator):
        self.args, self.pipe, self.prompts, self.size, self.accelerator = args, pipe, list(prompts), size, accelerator
        self.pictures: dict[str, Tensor] = {}
        self.found: dict[str, dict[str, Estimate]] = {}

    def sit(self, name: str) -> None:
        """Draw and measure; the main process does, the others go on."""
        if not self.accelerator.is_main_process:
            return
        self.pictures[name] = self.draw(name)
        self.found[name] = self.measures(self.pictures[name]) if self.args.measure else {}

    def draw(self, name: str) -> Tensor:
        """The pictures of the sitting of this name, one for each prompt. (N, 3, S, S)"""
        return self.paint(self.prompts)

    @abstractmethod
    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        """What is found out at a sitting at which these pictures were drawn; more may be drawn for it."""

    def paint(self, prompts: Sequence[str], **more) -> Tensor:
        return paint(self.pipe, list(prompts), self.args, self.size, self.accelerator, **more)

    def marks(self) -> str:
        """What the measures are to be compared with, as a sentence."""
        return ""

    def sheet(self, path: Path) -> Path:
        """The validation prompts, a row for each sitting."""
        return save_picture(sheet(torch.stack(list(self.pictures.values())), list(self.pictures), shown(self.prompts)), path)

    def table(self) -> str:
        """A row for each measure, a column for each sitting."""
        names = list(dict.fromkeys(measure for found in self.found.values() for measure in found))
        if not names:
            return ""
        width = max(map(len, names)) + 2
        rows = [" " * (width + 2) + "".join(f"{sitting:26}" for sitting in self.found)]
        for name in names:
            cells = [found.get(name) for found in self.found.values()]
            rows.append(f"  {name:{width}}" + "".join(f"{written(cell):26}" for cell in cells))
        return "\n".join(rows)


def written(e: Estimate | None) -> str:
    return "" if e is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


class StyleExam(Exam):
    """The exam of a training on captioned pictures, put into a style or not. plain: test pictures without the style, where it measures."""

    def __init__(self, args, pipe, style: Style | None, size: int, accelerator: Accelerator, loss: Denoising, plain: Images | None):
        super().__init__(args, pipe, [styled_caption(style, p) if style else p for p in args.prompts], size, accelerator)
        self.style, self.loss = style, loss
        if plain is not None:
            self.plain, self.wanted = plain, in_style(style, plain)
            self.test = encode(pipe, self.wanted, self.wanted.captions, quiet=True)

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        found = {"denoising error of test images": mean_of(self.errors())}
        if self.style:
            found["stray from the style, asked for"] = mean_of(stray(self.style, self.paint(self.wanted.captions)))
            found["stray from the style, not asked for"] = mean_of(stray(self.style, self.paint(self.plain.captions)))
        return found

    @torch.no_grad()
    def errors(self) -> Tensor:
        """Mean loss of each test image, at the same noise levels with the same noises in every sitting. (N,)"""
        device = self.accelerator.device
        batch = {name: column.to(device) for name, column in self.test.batch(torch.arange(len(self.test))).items()}
        kept, self.loss.caption_dropout = self.loss.caption_dropout, 0.0
        draws = [BatchRandom(NOISES + self.args.seed, k, device=device) for k in range(REPEATS)]
        order = [torch.randperm(len(self.test), generator=draw.generator, device=device) for draw in draws]  # levels are dealt out in order
        with self.accelerator.autocast():
            each = [self.loss(self.pipe.unet, {name: column[o] for name, column in batch.items()}, draw).per_sample[o.argsort()]
                    for o, draw in zip(order, draws, strict=True)]  # fmt: skip
        self.loss.caption_dropout = kept
        return torch.stack(each).mean(0).float().cpu()

    def marks(self) -> str:
        if not self.style:
            return ""
        best = mean_of(stray(self.style, through_autoencoder(self.pipe.vae, to_float(self.wanted.pixels))))
        return f"(pictures in the style, only through the autoencoder, stray by {written(best)})"


class SubjectExam(Exam):
    """Of DreamBooth: is it the subject when it is asked for, and only then?"""

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        subject, kind = f"a {self.args.word} {self.args.kind}", f"a {self.args.kind}"
        asked, plain = self.paint([subject] * self.args.measure), self.paint([kind] * self.args.measure)
        found = {}
        if self.args.subject is None:  # of the drawn creature we know what it looks like
            for name, images in ((subject, asked), (kind, plain)):
                found[f"attributes of the subject in '{name}'"] = mean_of(likeness(images))
                found[f"scarf in '{name}'"] = mean_of(scarf_share(images))
        return found | {f"variety of '{kind}'": mean_of(variety(plain))}


def likeness(images: Tensor) -> Tensor:
    """Share of the drawn subject's attributes that the judge of creatures sees in each picture. (N, 3, S, S) -> (N,)"""
    from common.evaluate.creature_classifier import load_creature_classifier, read_attributes

    places = [NAMES.index(name) for name in SUBJECT]
    wanted = torch.tensor([VALUES[place].index(SUBJECT[NAMES[place]]) for place in places])
    return (read_attributes(load_creature_classifier(), images)[0][:, places] == wanted).cpu().double().mean(1)


def scarf_share(images: Tensor) -> Tensor:
    """Share of the pixels whose colour is near that of the scarf. (N,)"""
    wool = 2 * torch.tensor(FRINGE).view(1, 3, 1, 1) - 1
    return ((images - wool).square().mean(1).sqrt() < 0.3).cpu().double().mean((1, 2))


def variety(images: Tensor) -> Tensor:
    """How far each picture is from the others: root mean square over pixels, mean over the others. (N,)"""
    flat = images.flatten(1).cpu().double()
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    return distance.sum(1) / max(1, len(images) - 1)


class EdgeExam(Exam):
    """Of a ControlNet: do the edges of the pictures lie where they were wanted?

    images     of the test split, whose edges are wanted and whose captions are the prompts
    controlled the pipeline with the ControlNet; sit("without control") and sit("with control") draw the same from the same noise
    """

    def __init__(self, args, controlled, images: Images, size: int, accelerator: Accelerator):
        super().__init__(args, controlled, images.captions, size, accelerator)
        self.images, self.wanted = to_float(images.pixels), edges(to_float(images.pixels), args.threshold)

    def draw(self, name: str) -> Tensor:
        return self.paint(self.prompts, **self.control(strength=0.0 if name == "without control" else None))

    def measures(self, pictures: Tensor) -> dict[str, Estimate]:
        return {f"agreement of edges, {how} (F1)": mean_of(agreement(edges(pictures, self.args.threshold), self.wanted, tolerance))
                for tolerance, how in enumerate(("to the pixel", "one pixel aside counts"))}  # fmt: skip

    def marks(self) -> str:
        """Lines are so dense in small pictures that those of any two agree; and what the autoencoder loses, no picture can have."""
        again = edges(through_autoencoder(self.pipe.vae, self.images), self.args.threshold)
        worst, best = (" and ".join(written(mean_of(agreement(found, self.wanted, tolerance))) for tolerance in (0, 1))
                       for found in (self.wanted.roll(1, 0), again))  # fmt: skip
        return f"(edges of another picture agree by {worst}; those of the same one, only through the autoencoder, by {best})"

    def some(self) -> Tensor:
        """A few pictures, as training goes."""
        return self.paint(self.prompts[:COLUMNS], **self.control(COLUMNS))

    def control(self, n: int | None = None, strength: float | None = None) -> dict:
        """What the pipeline wants to be told beside the prompts of the first n pictures."""
        return {"image": self.wanted[:n].expand(-1, 3, -1, -1), "controlnet_conditioning_scale": self.args.strength if strength is None else strength}

    def sheet(self, path: Path) -> Path:
        """Edges wanted, the pictures drawn without and with them, and the pictures that the edges were taken from."""
        rows = {"edges wanted": 2 * self.wanted.expand(-1, 3, -1, -1) - 1, **self.pictures, "their origin": self.images}
        some = torch.stack([images[:COLUMNS] for images in rows.values()])
        return save_picture(sheet(some, list(rows), shown(self.prompts[:COLUMNS])), path)


@torch.no_grad()
def through_autoencoder(vae, images: Tensor) -> Tensor:
    """Encoded and decoded, nothing else: what latents can say of the pictures at all. (N, 3, H, W) in [-1, 1], on the CPU"""
    parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mean for part in images.split(16)]
    return torch.cat([vae.decode(z, return_dict=False)[0].float().cpu() for z in parts]).clamp(-1, 1)


def in_style(style: Style | None, images: Images) -> Images:
    """Pictures and captions in a style; None leaves them."""
    if style is None:
        return images
    captions = tuple(styled_caption(style, caption) for caption in images.captions)
    return replace(images, pixels=styled_pixels(style, images.pixels), captions=captions)


def captioned_in_style(args, style: Style | None, size: int, accelerator: Accelerator) -> tuple[Images, Images | None]:
    """(training pictures in the style, test pictures without it where this process measures): loaded, or refused, before any are encoded."""
    images = load_captioned(args, size, n=args.n)
    plain = test_images(args, size) if args.measure and accelerator.is_main_process else None
    return in_style(style, images), plain


def test_images(args, size: int) -> Images:
    """args.measure images of the test split, or as many as it has."""
    images = load_captioned(args, size, "test", args.measure if args.data in DRAWN else None)
    return images.first(min(args.measure, len(images)))


def introduce(args, pipe: "StableDiffusionPipeline", images: Images, what: str, accelerator: Accelerator) -> None:
    """Say what is about to be done."""
    if not accelerator.is_main_process:
        return
    weights, f = sum(p.numel() for p in pipe.unet.parameters()), pipe.vae_scale_factor
    side = images.size // f
    print(f"{images.name}: {len(images):,} images of {images.size}x{images.size}, latents of {side}x{side}; "
          f"{args.model}: {weights:,} weights, {what}, on {accelerator.device}")  # fmt: skip
    print(f"{args.steps} steps of {args.batch_size * args.gradient_accumulation * accelerator.num_processes} images, learning rate {args.lr:g}; "
          f'the first caption is "{images.captions[0]}"')  # fmt: skip
    if longer := cut(pipe, images.captions):
        print(f"note: {longer} of {len(images):,} captions have more than {pipe.tokenizer.model_max_length} tokens, and their ends are not read")


def show(args, state: State | None, exam: Exam, tuner: Tuner, program: str, where: dict[str, Path]) -> None:
    """The end of a run: what was measured, what it cost, and where things are."""
    step = tuner.progress.step
    if step < args.steps:
        print(f"stopped after step {step}; continue with: python 05_finetune_diffusers/{program} --resume {args.out}")
    print(f"{step} steps in {tuner.progress.seconds:.0f} s of training" if state else f"nothing was left to do: all {step} steps are done")
    pictures = {"before and after": exam.sheet(args.out / "before_after.png")}
    if exam.table():
        print(f"\nmeasured on {args.measure} pictures, with 95 % intervals\n{exam.table()}")
        if exam.marks():
            print(f"  {exam.marks()}")
    cost = tuner.cost.as_json()
    if state:
        print(f"\nmemory\n{tuner.cost.table()}\n")
    measures = {sitting: {name: e._asdict() for name, e in found.items()} for sitting, found in exam.found.items()}
    write_json(args.out / "results.json", {"measures": measures, "cost": cost, "seconds": tuner.progress.seconds, "steps": step})
    for what, path in (pictures | where).items():
        print(f"{what:18} {path}")

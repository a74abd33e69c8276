"""The flags of the programs whose work needs most of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from common.io.ranges import MAY_BE_EMPTY, Range
from common.training.flags import TextToImageFlags, TrainingFlags

PRETRAINED = Path(__file__).parent.parent / "pretrained"
PROMPTS = (
    "a red fire creature with bat wings",
    "a blue round creature with cat ears, on a cream background",
    "一只黄色的电属性小怪兽，长着兔耳朵",
    "a blue fire creature",  # training never sees blue and fire together
    "番茄炒蛋",
    "白瓷圆盘里的葱油生菜，木桌",
    "a white plate of red-braised fish on a linen tablecloth",
    "",
)


@dataclass(frozen=True)
class LatentModelFlags(TextToImageFlags):
    """Flags of train.py."""

    data: tuple[str, ...] = ("creatures", "dishes")
    """Data sets, one or several that are trained on together:
    creatures, dishes, pokemon, or folders of images with captions.
    """
    size: int | None = None
    """Pixels a side; by default the size that the autoencoder was trained for."""
    vae: Path | None = None
    """Autoencoder: a run of train_vae.py, a folder with one in it, or a checkpoint in one file; by default that of
    --start, or the shipped one. It stays frozen."""
    latents: Literal["cached", "on-the-fly"] = "cached"
    """Encoding of the images: once, into a file, or again in every epoch."""
    cache: Path = Path("runs/04_latent_sd/cache")
    """Folder of that file, and of the embeddings of a frozen text encoder; later runs find them there."""
    workers: int = 2
    """Processes that encode on the fly; 0 encodes in the training process."""
    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution of the latents, highest first; the two lowest attend to the text."""
    start: Path | None = None
    """Run or folder whose U-Net, text encoder and --channels the training begins with. With one more of --channels in
    front, as wide as the next, the U-Net grows by one resolution, for larger images."""
    schedule: str = "cosine"
    """Noise schedule: cosine, linear, scaled_linear, linear_zero_snr, ...,
    one that a Stable Diffusion folder can store.
    """
    prediction: str = "v"
    """Prediction of the network: eps, x0 or v."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of the sample pictures, drawn without and with guidance side by side."""


@dataclass(frozen=True)
class AutoencoderFlags(TrainingFlags):
    """Flags of train_vae.py."""

    data: tuple[str, ...] = ("creatures", "dishes")
    """Data sets, one or several that are trained on together: creatures, dishes, ..., or folders of images."""
    n: int | None = None
    """Number of images of each set, the first ones; by default all."""
    size: int | None = None
    """Pixels a side; a multiple of f = 2^(number of channels - 1)."""
    image_channels: Literal[1, 3] | None = None
    """Channels of the images: 3 in colour, 1 grey; by default those of --start, else 1 where all pictures are grey."""
    flip: bool = False
    """Whether images are mirrored at random."""

    channels: tuple[int, ...] | None = None
    """Width of the network at each resolution, highest resolution first; one resolution more doubles f."""
    latent_channels: int = 4
    """Channels of the latents."""
    layers: int = 1
    """Residual blocks at each resolution."""
    start: Path | None = None
    """Run or folder with an autoencoder of the same build, whose weights the training begins with. It may have learned
    at another size: small images are learned from faster."""
    decoder_only: bool = False
    """Training of the decoder alone: better pictures from the same latents,
    so that U-Nets trained on the latents of --start stay usable.
    """

    error: Literal["l1", "l2", "huber"] = "l1"
    """Distance between reconstructions and images, pixel by pixel."""
    kl: float = 1e-6
    """Weight of the KL term, in nats a pixel value."""
    perceptual: float = 0.0
    """Weight of the perceptual term, against blur; 0 is off."""
    adversarial: float = 0.0
    """Weight of the adversarial term, relative to the gradient of the other terms, against blur as well; 0 is off."""
    adversarial_after: float = 0.5
    """Share of the budget after which it joins:
    a discriminator learns nothing useful while reconstructions are still blurred.
    """
    held_out: int = 200
    """Images of each set's test split to measure on."""
    sample_every: int | None = None
    """Steps between measurements and pictures; by default a tenth of the budget."""


@dataclass(frozen=True)
class BenchmarkFlags:
    """Flags of benchmark_latents.py."""

    vae: Path | None = None
    """Run folder or model folder with an autoencoder;
    by default an untrained one, which is as slow as a trained one.
    """
    data: tuple[str, ...] = ("creatures", "dishes")
    """One data set or several."""
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    n: int = 256
    """Number of images of each set: the first n."""
    size: int | None = None
    """Pixels a side; by default the autoencoder's own, 64 without one."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Widths of the untrained autoencoder."""
    batch_size: int = 32
    """Images a batch."""
    epochs: Annotated[int, Range(2, 1000, hint="the first is reported by itself")] = 3
    """Number of epochs. The first, in which worker processes start, is reported by itself;
    of the others, the median is.
    """
    workers: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to compare; 0 encodes in the process itself."""
    start: Literal["auto", "fork", "spawn"] = "auto"
    """Start method of worker processes; auto is spawn if a GPU is used, and else the safe one of the platform."""
    json: Path | None = None
    """File for the figures, too."""
    seed: int = 0
    """Random seed of the untrained autoencoder and of the order of images."""
    device: str = "auto"
    """Device that encodes: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class EvaluationFlags:
    """Flags of evaluate.py."""

    model: Path = PRETRAINED
    """Run folder of this chapter, or folder of such a model."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = (1, 2, 3, 5, 8)
    """Guidance scales to measure; 1 is off, 0 ignores the prompt. Without any, the autoencoder alone is measured."""
    n: int = 200
    """Number of prompts of each split, and of images of each set."""
    splits: tuple[Literal["test", "heldout"], ...] = ("test", "heldout")
    """Splits of the prompts."""
    data: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ("creatures", "dishes")
    """Data sets with whose test images the autoencoder is measured.
    Without any, prompt adherence alone is measured.
    """
    data_dir: Path = Path("data")
    """Folder of local copies and of downloads."""
    language: Literal["en", "zh", "both"] = "both"
    """Language of the prompts; both is half and half."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ..."""
    rescale: float = 0.0
    """phi of guidance rescale, 0 to 1, against too strong contrast."""
    negative: str = ""
    """Negative prompt of all pictures."""
    seed: int = 0
    """Random seed of the initial noise."""
    out: Path | None = None
    """Folder of results.csv and the figures; by default runs/04_latent_sd/evaluate/<model>."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


@dataclass(frozen=True)
class LatentSampleFlags:
    """Flags of sample.py."""

    prompts: Positional[tuple[str, ...]]
    """Prompts, in the languages of the model; n images are drawn of each. "" samples without a prompt."""
    model: Path = PRETRAINED
    """Run folder, Stable Diffusion 1.x or 2.x folder, or checkpoint in one file (.safetensors, .ckpt); by default the
    shipped model of creatures and dishes."""
    n: int = 8
    """Number of images of each prompt."""
    guidance: float = 5.0
    """Guidance scale w, 0 or more; 1 is off."""
    sweep: str | None = None
    """Several guidance scales instead of one: 1,2,4,8 draws a row for each, from the same noise."""
    negative: str = ""
    """Negative prompt: it takes the place of the empty caption."""
    image: Path | None = None
    """Picture to start from instead of noise; it is shown at the left of every row."""
    strength: float | None = None
    """Strength of the noise added to it, above 0 to 1: 0.2 changes little, 0.9 keeps little of it. By default 0.6."""
    rescale: float = 0.0
    """Guidance rescale, 0 (off) to 1, against too strong contrast."""
    interval: tuple[float, float] = (0.0, float("inf"))
    """Noise levels with guidance: low < sigma / alpha <= high."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ddpm:250, heun:18, ..."""
    size: int | None = None
    """Pixels a side; by default the size that the model was trained for."""
    seed: int = 0
    """Random seed of the noise; the same seed gives the same images."""
    out: Path = Path("runs/04_latent_sd/samples.png")
    """File of the grid."""
    gif: bool = False
    """Whether to write an animated GIF of the reverse process, decoded, beside the grid."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""

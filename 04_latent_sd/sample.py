"""Draw images of prompts, starting from noise or from a picture.

python 04_latent_sd/sample.py "番茄炒蛋"
python 04_latent_sd/sample.py "a red fire creature" --n 8 --guidance 5 --negative "wings"
python 04_latent_sd/sample.py "一盘葱油生菜" --sweep 1,2,4,8
python 04_latent_sd/sample.py "a blue ghost creature" --image creature.png --strength 0.6
python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5 --n 1 --guidance 7.5 --sampler ddim:50
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from common.cli import run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
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


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError(
            'give a prompt, for instance "番茄炒蛋" or "a red creature with wings"; "" samples without a prompt'
        )
    if args.strength is not None and args.image is None:
        raise UserError("--strength needs a picture to begin with; give it with --image")
    from latent_sd.sampling import SamplingConfig, draw_samples

    config = SamplingConfig(
        args.guidance, args.negative, args.sampler, args.rescale, args.interval, size=args.size, seed=args.seed
    )
    strength = 0.6 if args.strength is None else args.strength
    draw_samples(
        args.model, args.prompts, args.n, args.sweep, config, args.image, strength, args.out, args.gif, args.device
    )


if __name__ == "__main__":
    run(main, Args)

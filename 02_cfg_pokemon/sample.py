"""Draw images of prompts.

python 02_cfg_pokemon/sample.py "a red creature with wings"
python 02_cfg_pokemon/sample.py "一只绿色的草属性小怪兽" --n 16 --guidance 5 --negative "wings"
python 02_cfg_pokemon/sample.py "a blue ghost creature" --sweep 0,1,2,4,8
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    prompts: Positional[tuple[str, ...]]
    """Prompts, in English or Chinese; n images are drawn of each. "" samples without a prompt."""
    model: Path = PRETRAINED
    """Run folder, or folder of a text-to-image model of pixels; by default the shipped model of creatures."""
    n: int = 8
    """Number of images of each prompt."""
    guidance: float = 3.0
    """Guidance scale w, 0 or more; 1 is off."""
    sweep: str | None = None
    """Several guidance scales instead of one: 1,2,4,8 draws a row for each, from the same noise."""
    negative: str = ""
    """Negative prompt: it takes the place of the empty caption."""
    rescale: float = 0.0
    """Guidance rescale, 0 (off) to 1, against too strong contrast."""
    clip: Literal["static", "none", "dynamic"] = "static"
    """How the predicted image is kept in [-1, 1]: clipped, not at all, or by dynamic thresholding."""
    interval: tuple[float, float] = (0.0, float("inf"))
    """Noise levels with guidance: low < sigma / alpha <= high."""
    sampler: str = "dpmpp_2m:20"
    """Sampler and number of steps: dpmpp_2m:20, ddim:50, ddpm:250, heun:18, ..."""
    seed: int = 0
    """Random seed of the noise; the same seed gives the same images."""
    out: Path = Path("runs/02_cfg_pokemon/samples.png")
    """File of the grid."""
    gif: bool = False
    """Whether to write an animated GIF of the reverse process beside it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError('give a prompt, for instance "a red creature with wings"; "" samples without a prompt')
    from cfg_pokemon.sampling import SamplingConfig, draw_samples

    config = SamplingConfig(args.guidance, args.negative, args.sampler, args.rescale, args.interval, seed=args.seed)
    draw_samples(args.model, args.prompts, args.n, args.sweep, config, args.clip, args.out, args.gif, args.device)


if __name__ == "__main__":
    run(main, Args)

"""Are the words heard at all? The loss of a model that is told the right caption, nothing, and somebody else's.

  python 02_cfg_pokemon/caption_sensitivity.py
  python 02_cfg_pokemon/caption_sensitivity.py --model runs/02_cfg_pokemon/creatures --n 500

Sampling takes minutes and needs a judge; this takes seconds, for any captioned pictures, and at any moment of a training. A network that
does not listen has the same loss three times. Where there is little noise it always has: the picture itself says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from common.cli import pick_device, run
from common.io.ranges import Range

if TYPE_CHECKING:  # torch waits until it is needed
    from cfg_pokemon.pipeline import Painter
    from common.data import Images

PRETRAINED = Path(__file__).parent / "pretrained"
BANDS = ((0.0, 0.35), (0.35, 0.65), (0.65, 0.95), (0.95, 1.0))  # of the noise level u; 1 is noise alone
BATCH = 100


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """A run folder of this chapter, or a folder that save_painter wrote."""
    data: str = "creatures"
    """creatures (those of the test split), pokemon, or a folder of images with captions."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    language: Literal["en", "zh", "both"] | None = None
    n: Annotated[int, Range(2, 1_000_000, hint="each picture is also told the caption of another")] = 300
    """How many pictures to look at, each once in every band."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def losses(painter: Painter, images: Images, seed: int = 0) -> dict[str, list[float]]:
    """The mean loss in each of BANDS when told the right caption, nothing, and the caption of the picture after it."""
    import torch

    from common.diffusion.losses import diffusion_loss
    from common.io.pixels import to_float
    from common.io.progress import with_progress

    captions, n, device = list(images.captions), len(images), next(painter.net.parameters()).device
    told = {"right": captions, "nothing": [""] * n, "wrong": captions[1:] + captions[:1]}
    found: dict[str, list[float]] = {name: [] for name in told}
    for low, high in BANDS:
        dice = torch.Generator().manual_seed(seed)
        u = low + (high - low) * (torch.arange(n) + 0.5) / n
        eps = torch.randn(images.pixels.shape, generator=dice)
        for name, texts in told.items():
            total = 0.0
            for part in with_progress(f"captions: {name}", [slice(first, first + BATCH) for first in range(0, n, BATCH)], unit="batch"):
                x0, noise = to_float(images.pixels[part]).to(device), eps[part].to(device)
                with torch.no_grad():
                    each = diffusion_loss(painter.net, painter.schedule, painter.prediction, x0, u[part], noise, text=painter.encoder(texts[part]))
                total += float(each.sum())
            found[name].append(total / n)
    return found


def main(args: Args) -> None:
    from cfg_pokemon.pipeline import open_painter
    from common.data import load
    from common.data.creatures.dataset import load_creatures

    painter = open_painter(args.model, pick_device(args.device))
    size = painter.net.cfg.size
    own = args.data == "creatures"
    images = (load_creatures("test", args.n, size, language=args.language or "both") if own
              else load(args.data, size, args.data_dir, language=args.language, n=args.n, channels=painter.net.cfg.in_channels))  # fmt: skip
    images.need_captions(args.language)
    found = losses(painter, images, args.seed)
    print(f"{args.model}: loss on {len(images)} pictures of {args.data}\n\n{'noise level u':16}" + "".join(f"{name:>10}" for name in found) + f"{'wrong - right':>16}")
    for k, (low, high) in enumerate(BANDS):
        print(f"{low:.2f} to {high:.2f}{'':4}" + "".join(f"{values[k]:>10.4f}" for values in found.values()) + f"{found['wrong'][k] - found['right'][k]:>16.4f}")


if __name__ == "__main__":
    run(main, Args)

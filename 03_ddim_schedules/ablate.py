"""Train and sample with every combination of settings, measure the samples, and compare.

  python 03_ddim_schedules/ablate.py --list                                   the named studies
  python 03_ddim_schedules/ablate.py samplers                                 8 samplers x 6 numbers of steps
  python 03_ddim_schedules/ablate.py dit                                      DiT against U-Net at equal training time
  python 03_ddim_schedules/ablate.py flow                                     flow against diffusion at equal evaluations
  python 03_ddim_schedules/ablate.py losses                                   trains networks of the embedded digits
  python 03_ddim_schedules/ablate.py losses data=mnist n=500 --data-dir data  a named study with other settings
  python 03_ddim_schedules/ablate.py schedule=linear,cosine sampler=ddim:20,dpmpp_2m:20 seed=0,1,2
  python 03_ddim_schedules/ablate.py samplers sampler=ddim steps=5,10,20,50,100,200 --model runs/01_ddpm_mnist/mnist

All results are cached: a study that was stopped continues where it was,
and two studies share the experiments they have in common.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from common.cli import run


@dataclass(frozen=True)
class Args:
    what: Positional[tuple[str, ...]] = ()
    """Name of a study, or what to vary as key=value,value ..., or both."""
    list: bool = False
    """Print the named studies and all settings that can be varied."""
    dry: bool = False
    """Print only what would be done, and about how long it would take."""
    model: Path | None = None
    """Trained network, a run folder or any diffusers folder; by default networks are trained. data=... says what it
    is compared with (mnist-10k)."""
    measure: Literal["frechet", "kid", "brightness", "contrast", "sharpness", "saturation"] | None = None
    """Measure in the table and the plot; the CSV file holds all of them."""
    data_dir: Path = Path("data")
    """Folder of local copies of data, and of downloads."""
    out: Path | None = None
    """Folder of results.csv, the table with intervals and the pictures; by default runs/03_ddim_schedules/<study>."""
    lab: Path = Path("runs/03_ddim_schedules/lab")
    """Folder of trained networks and results, which all studies share."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the training, as in chapter 1."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    from ddim_schedules import ablation, runner

    if args.list:
        ablation.print_studies()
        return
    plan = ablation.read_plan(args.what, args.model, args.measure)
    out = args.out or Path("runs/03_ddim_schedules") / plan.name
    ablation.run_study(plan, runner.Runner(args.lab, args.data_dir, args.device, args.precision), out, args.dry)


if __name__ == "__main__":
    run(main, Args)

"""Two questions that the shipped model alone cannot answer, because they need models that were taught otherwise.

  python 02_cfg_pokemon/ablations.py brightness     why do guided pictures come out darker, or more strongly coloured?  (claim 8)
  python 02_cfg_pokemon/ablations.py size           what do 100, 800 and 10,000 training images give?                   (claim 9)
  python 02_cfg_pokemon/ablations.py epochs         are 300 epochs as good as 2,000?                                    (claim 9)

Each study trains small networks of 16 x 16 pixels that differ in one thing, with train.py, and measures all of them alike, with the
functions of evaluate.py and memorization.py. Trained networks and drawn pictures are kept: stopped and started again, it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from common.cli import pick_device, run, writable_folder

if TYPE_CHECKING:  # torch waits until it is needed
    from cfg_pokemon.pipeline import Painter

SETTINGS = {"size": 16, "channels": (16, 32), "batch_size": 16, "lr": 2e-3, "n": 10_000, "precision": "no"}
SCALES = {"brightness": (0.0, 1.0, 2.0, 3.0, 5.0, 8.0), "size": (1.0, 3.0), "epochs": (1.0, 3.0)}
CURES = {  # tried on the first network of the study of brightness
    "rescale 0.7": {"rescale": 0.7}, "no clipping": {"clip": False}, "dynamic thresholding": {"clip": "dynamic"},
    "interval 0.3 to 5": {"interval": (0.3, 5.0)},
}  # fmt: skip
STUDIES = {
    "brightness": {
        "as it is": {}, "mirrored": {"augment": "mirror"}, "brightness jittered": {"augment": "jitter"}, "turned, black corners": {"augment": "turn"},
        "scaled linear": {"schedule": "scaled_linear"}, "zero terminal SNR": {"schedule": "scaled_linear_zero_snr"},
    },
    "size": {f"{n:,} images": {"n": n} for n in (100, 800, 10_000)},
    "epochs": {"300 epochs": {"n": 100, "epochs": 300}, "2,000 epochs": {"n": 100, "epochs": 2000}},
}  # fmt: skip


@dataclass(frozen=True)
class Args:
    study: Positional[Literal["brightness", "size", "epochs"]]
    """Which question."""
    steps: int = 3000
    """Training steps of each network, 16 images each. (Not in the study of epochs, where they follow from the number of images.)"""
    n: int = 200
    """Pictures that each network is measured on, at each guidance scale."""
    seeds: tuple[int, ...] = (0,)
    """Of the training; each is a whole study more, and the table has all of them."""
    out: Path = Path("runs/02_cfg_pokemon/studies")
    """Where networks, pictures and tables are kept."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# ------------------------------------------------------------------------------------------------------------ the networks


def settings(args: Args, change: dict, seed: int) -> dict:
    """The flags of train.py for one network."""
    flags = SETTINGS | {"steps": args.steps, "seed": seed, "device": args.device} | change
    if epochs := flags.pop("epochs", None):
        flags["steps"] = max(1, epochs * flags["n"] // flags["batch_size"])
    return flags


def trained(args: Args, name: str, change: dict, seed: int) -> Path:
    """The run folder of one network, trained now if it was not yet."""
    import train

    flags = settings(args, change, seed)
    folder = args.out / "models" / slug(flags)
    if not (folder / "samples.png").exists():  # the last thing that a training writes
        print(f"\n{name}, seed {seed}: {flags['steps']} steps", flush=True)
        again = (folder / "checkpoints").exists()
        train.main(train.Args(resume=folder, device=args.device) if again else train.Args(out=folder, sample_every=10**9, save_every=250, **flags))
    return folder


def slug(flags: dict) -> str:
    """What is not as in SETTINGS, as a folder's name: studies that need the same network share it."""
    unlike = {key: value for key, value in flags.items() if value != SETTINGS.get(key) and key != "device"}
    return ",".join(f"{key}={value}" for key, value in unlike.items())


# --------------------------------------------------------------------------------------------------------- the measurements


def row_of(painter: Painter, prompts, wish, model: Path, args: Args) -> dict[str, float]:
    """What evaluate.py measures, of one network and one way to draw."""
    import evaluate

    from common.evaluate.creature_classifier import load_creature_classifier

    drawn = evaluate.pictures(painter, evaluate.fingerprint(model), prompts, wish, args.out / "pictures")
    return evaluate.measure(load_creature_classifier(), prompts, *drawn)


def copied(painter: Painter, captions: list[str], wish, n_train: int) -> dict[str, float]:
    """What memorization.py measures: shares of samples that are too near to the training set, and nearer than to an unseen one."""
    import memorization as memorise

    from common.data.creatures.dataset import load_creatures
    from common.evaluate.creature_classifier import load_creature_classifier
    from common.io.pixels import to_bytes

    samples, size = to_bytes(painter.draw(captions, wish).nan_to_num(0.0)), painter.net.cfg.size
    train, unseen = (load_creatures("train", n_train, size, seed).pixels for seed in (0, memorise.UNSEEN))
    test, found = load_creatures("test", memorise.TEST, size).pixels, {}
    for name, view in memorise.views(load_creature_classifier()).items():
        numbers = memorise.report(*(view(pixels) for pixels in (samples, test, train, unseen)))[0]
        found |= {f"{key}_{name}": numbers[key] for key in ("too_near", "too_near_low", "too_near_high", "nearer", "nearer_low", "nearer_high")}
    return found


def measure_brightness(args: Args, seed: int) -> list[dict]:
    """Every network at every scale, and the first with every cure at one."""
    import evaluate

    from cfg_pokemon.pipeline import Wish, open_painter

    prompts, rows = evaluate.ask("test", args.n, "both", SETTINGS["size"]), []
    for k, (name, change) in enumerate(STUDIES["brightness"].items()):
        folder = trained(args, name, change, seed)
        painter = open_painter(folder, pick_device(args.device))
        ways = [(name, Wish(w=w)) for w in SCALES["brightness"]]
        ways += [(cure, replace(Wish(w=5.0), **how)) for cure, how in CURES.items()] if k == 0 else []
        for way, wish in ways:
            rows.append({"what": way, "seed": seed, "w": wish.w} | row_of(painter, prompts, wish, folder, args))
            print(line(rows[-1], "brightness"), flush=True)
    return rows


def measure_copies(args: Args, seed: int) -> list[dict]:
    """Every network on captions of the test and of the held-out split, and how near its pictures are to its training set."""
    import evaluate

    from cfg_pokemon.pipeline import Wish, open_painter

    asked, rows = {split: evaluate.ask(split, args.n, "both", SETTINGS["size"]) for split in ("test", "heldout")}, []
    for name, change in STUDIES[args.study].items():
        folder = trained(args, name, change, seed)
        painter = open_painter(folder, pick_device(args.device))
        for w in SCALES[args.study]:
            row = {"what": name, "seed": seed, "w": w}
            for split, prompts in asked.items():
                row |= {f"{key}_{split}": value for key, value in row_of(painter, prompts, Wish(w=w), folder, args).items()}
            rows.append(row | copied(painter, asked["test"].captions, Wish(w=w), change["n"]))
            print(line(rows[-1], args.study), flush=True)
    return rows


# ----------------------------------------------------------------------------------------------------------- the program


def header(study: str) -> str:
    columns = ("brightness", "saturation", "burnt", "diversity", "accuracy") if study == "brightness" else (
        "test", "held out", "too near (pixels, features)", "nearer than unseen (pixels, features)")  # fmt: skip
    return f"{'':24}{'w':>4}" + "".join(f"{name:>{max(18, len(name) + 3)}}" for name in columns)


def line(row: dict, study: str) -> str:
    """One line of the table."""
    if study == "brightness":
        cells = [f"{row[key]:.3f} ± {row[f'{key}_sd']:.3f}" for key in ("brightness", "saturation")]
        cells += [f"{row['burnt']:.1%}", f"{row['diversity']:.3f}", f"{row['accuracy']:.1%}"]
    else:
        cells = [f"{row[f'accuracy_{split}']:.1%} ({row[f'accuracy_low_{split}']:.0%}-{row[f'accuracy_high_{split}']:.0%})" for split in ("test", "heldout")]
        cells += [f"{row[f'{key}_pixels']:.0%}, {row[f'{key}_features']:.0%}" for key in ("too_near", "nearer")]
    wide = [18] * 5 if study == "brightness" else [18, 18, 30, 40]
    return f"{row['what']:24}{row['w']:>4g}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, wide, strict=True))


def main(args: Args) -> None:
    import evaluate

    from cfg_pokemon import ablation_plots as trial_plots
    from common.evaluate.creature_classifier import load_creature_classifier

    writable_folder(args.out)
    rows, table, picture = [], args.out / f"{args.study}.csv", args.out / f"{args.study}.png"
    print(header(args.study))
    for seed in args.seeds:
        rows += measure_brightness(args, seed) if args.study == "brightness" else measure_copies(args, seed)
        evaluate.save_rows(rows, table)
    if args.study == "brightness":
        prompts = evaluate.ask("test", args.n, "both", SETTINGS["size"])
        real = {"what": "real pictures", "w": 1} | evaluate.measure(load_creature_classifier(), prompts, prompts.real, prompts.alike)
        print(line(real, "brightness"))
        trial_plots.plot_brightness(rows, real, picture)
    else:
        print("innocent of copying are 1 % too near, and 50 % nearer than unseen")
        trial_plots.plot_copies(rows, picture)
    print(f"{table}\n{picture}")


if __name__ == "__main__":
    run(main, Args)

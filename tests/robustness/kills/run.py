"""Kill every training program with SIGKILL at each of its file operations, resume it to the end,
and compare the result bit for bit.

  python tests/robustness/kills/run.py                          all programs, every operation: minutes to hours
  python tests/robustness/kills/run.py --programs 04_train 06_text2dish
  python tests/robustness/kills/run.py --sample 3               three operations of each program, chosen by chance
  python tests/robustness/kills/run.py --json kills.json        keep the results

A file operation is one that changes the run folder: opening a file to write, a rename, a removal, a new folder, or an
fsync, before which half of the file is cut off. The process dies before the operation takes place. An audit hook of
Python sees them, whatever library calls them. One process imports everything and forks a child for every life of a
run, so a life costs about as long as its training.

Compared are weights, averages, optimizer and other state of the last checkpoint, the model folder, the log and the
measurements without their times, and the pictures at the end; and nothing half-written may be left.
"""

import argparse
import csv
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the course
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests/
import torch
from torch import Tensor

from helpers.programs import load_program, run_main  # also sets what must precede torch

TINY = ["--steps", 4, "--save-every", 2, "--device", "cpu", "--precision", "no", "--threads", 1]
DRAWN = ["--sampler", "ddim:2", "--sample-every", 3]
FINETUNE = [*TINY, "--size", 32, "--batch-size", 2, "--sample-steps", 2, "--measure", 2]
PROGRAMS: dict[str, tuple[str, list]] = {  # PARTS/x is what prepare() writes
    "01_train": ("01_ddpm_mnist/train.py", [*TINY, *DRAWN, "--data", "digits", "--size", 8, "--channels", 8, 16, "--batch-size", 8]),
    "01_train_start": ("01_ddpm_mnist/train.py", [*TINY, *DRAWN, "--data", "digits", "--size", 8, "--batch-size", 8, "--start", "PARTS/digits"]),
    "02_train": ("02_cfg_pokemon/train.py", [*TINY, *DRAWN, "--n", 12, "--size", 16, "--channels", 8, 16, "--text-dim", 32, "--batch-size", 4]),
    "04_train": ("04_latent_sd/train.py", [*TINY, *DRAWN, "--n", 6, "--channels", 8, 16, "--text-dim", 32, "--batch-size", 4, "--vae", "PARTS/sd",
                                           "--cache", "PARTS/cache", "--prompts", "a red creature"]),
    "04_train_fly": ("04_latent_sd/train.py", [*TINY, *DRAWN, "--n", 6, "--batch-size", 4, "--start", "PARTS/sd", "--latents", "on-the-fly", "--workers", 1,
                                               "--prompts", "a red creature"]),
    "04_vae": ("04_latent_sd/train_vae.py", [*TINY, "--sample-every", 3, "--data", "creatures", "--n", 12, "--size", 16, "--channels", 8, 16, "--batch-size", 4,
                                             "--held-out", 4, "--perceptual", 0.1, "--adversarial", 0.5, "--adversarial-after", 0.3]),
    "04_vae_decoder": ("04_latent_sd/train_vae.py", [*TINY, "--sample-every", 3, "--data", "creatures", "--n", 12, "--size", 16, "--channels", 8, 8, 16,
                                                     "--batch-size", 4, "--held-out", 4, "--start", "PARTS/sd", "--decoder-only"]),
    "05_finetune": ("05_finetune_diffusers/finetune.py", [*FINETUNE, "--model", "PARTS/sd", "--n", 6, "--prompts", "a red creature"]),
    "05_lora": ("05_finetune_diffusers/lora.py", [*FINETUNE, "--model", "PARTS/sd", "--n", 6, "--rank", 4, "--prompts", "a red creature"]),
    "05_dreambooth": ("05_finetune_diffusers/dreambooth.py", [*FINETUNE, "--model", "PARTS/sd", "--poses", 3, "--class-images", 4, "--prompts", "a {}"]),
    "05_controlnet": ("05_finetune_diffusers/controlnet.py", [*FINETUNE, "--model", "PARTS/sd", "--n", 6]),
    "05_unconditional": ("05_finetune_diffusers/train_unconditional.py", [*TINY, "--n", 12, "--size", 16, "--channels", 8, 16, "--batch-size", 4,
                                                                          "--sample-steps", 2, "--sample-every", 3]),
    "05_package": ("05_finetune_diffusers/ddpm_package.py", ["--steps", 5, "--save-every", 2, "--n", 100, "--size", 16, "--dim", 8, "--mults", 1, 2,
                                                             "--samples", 4, "--sample-steps", 2, "--device", "cpu", "--threads", 1]),
    "06_clip": ("06_inpaint_gif/train_clip.py", [*TINY, "--size", 32, "--patch", 16, "--width", 32, "--layers", 1, "--text-width", 32, "--text-layers", 1,
                                                 "--dim", 16, "--batch-size", 6, "--n", 12, "--held-out", 8]),
    "06_clip_start": ("06_inpaint_gif/train_clip.py", [*TINY, "--batch-size", 6, "--n", 12, "--held-out", 8, "--start", "PARTS/clip"]),
    "06_text2dish": ("06_inpaint_gif/train_text2dish.py", [*TINY, *DRAWN, "--batch-size", 4, "--n", 8, "--model", "PARTS/sd", "--clip", "PARTS/clip",
                                                           "--backend", "transformers", "--names", "番茄炒蛋"]),
    "06_inpaint": ("06_inpaint_gif/train_inpaint.py", [*TINY, *DRAWN, "--batch-size", 4, "--n", 4, "--windows", 2, "--model", "PARTS/sd"]),
    "06_controlnet": ("06_inpaint_gif/train_controlnet.py", [*TINY, *DRAWN, "--batch-size", 4, "--n", 3, "--windows", 1, "--model", "PARTS/sd"]),
}  # fmt: skip
WORK = ["ddpm_mnist.trainer", "cfg_pokemon.trainer", "latent_sd.unet_trainer", "latent_sd.vae_trainer", "finetune_diffusers.training.finetune",
        "finetune_diffusers.training.dreambooth", "finetune_diffusers.training.controlnet", "finetune_diffusers.training.unconditional_trainer",
        "finetune_diffusers.training.ddpm_package_trainer", "inpaint_gif.clip.trainer", "inpaint_gif.training.text2dish", "inpaint_gif.training.inpaint",
        "inpaint_gif.training.controlnet"]  # fmt: skip
TIMES = {"seconds", "took", "images_per_second", "progress"}  # what no two runs have in common
TIMED = ("config.json", "results.json", "loss.png", "curves.png")  # files with times in them, or a path
CHANGES = {
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": None,
}  # event: place of dir_fd


# ---------------------------------------------------------------------------------------------------- dying at a place


def watch(run: Path, last: int | None, count: Callable[[str], None]) -> None:
    """From now on count the operations that change the run folder, and die before number `last`."""
    inside, number, synced = str(run), [0], os.fsync

    def passes(what: str, path: str) -> None:
        if not path.startswith(inside) or "events.out" in path:  # TensorBoard writes from a thread, at its own time
            return
        if number[0] == last:
            if what == "fsync":
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        number[0] += 1
        count(f"{what} {path.removeprefix(inside)}")

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, mode, flags = args
            if isinstance(path, str) and ((mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)):
                passes("open", os.path.abspath(path))
        elif event in CHANGES:
            place = CHANGES[event]
            path, folder = os.fsdecode(args[0]), args[place] if place else -1
            if not os.path.isabs(path) and isinstance(folder, int) and folder >= 0:
                # shutil.rmtree names files like this
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            passes(event, os.path.abspath(path))

    def fsync(fd: Any) -> None:
        passes("fsync", os.readlink(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}"))
        synced(fd)

    sys.addaudithook(hook)
    os.fsync = fsync


def live(program: str, flags: list, run: Path, log: Path, last: int | None = None) -> tuple[int, list[str]]:
    """One life of a run in a forked child.
    Returns its exit code, negative for a signal, and its operations where it lives to the end.
    """
    operations = run.with_name(run.name + ".operations")
    child = os.fork()
    if child == 0:
        code, seen = 1, []
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            watch(run, last, seen.append)
            run_main(program, *flags)
            operations.write_text("\n".join(seen))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, operations.read_text().splitlines() if code == 0 else []


# ----------------------------------------------------------------------------------------------------------- comparing


def state_of(run: Path) -> dict[str, str]:
    """{what: digest} of all that two runs of one seed must have in common."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if name.startswith(("samples/", "events.out")) or path.name.startswith("random_states_") or name in TIMED:
            continue  # with times in them, drawn on the way, or the global generators of a process, which no step draws from
        if path.suffix in (".pt", ".bin", ".pkl"):
            whole = torch.load(path, map_location="cpu", weights_only=False)  # of our own making
            found |= {f"{name}:{key}": value for key, value in flat(whole)}
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
            found[name] = digest(json.dumps(rows).encode())
        elif path.suffix == ".safetensors":  # whose writer puts the entries of the metadata in random order
            data = path.read_bytes()
            end = 8 + int.from_bytes(data[:8], "little")
            found[name] = digest(json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:])
        else:
            found[name] = digest(path.read_bytes())
    return found


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key in value:
            if key not in TIMES:
                yield from flat(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from flat(item, f"{name}.{i}")
    elif isinstance(value, Tensor):
        yield (
            name,
            digest(
                str((value.dtype, value.shape)).encode()
                + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            ),
        )
    else:
        yield name, digest(repr(value).encode())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def difference(run: Path, whole: dict[str, str]) -> str:
    """In what a run differs from one that was left alone, or ""."""
    mine = state_of(run)
    wrong = sorted(name for name in mine.keys() | whole.keys() if mine.get(name) != whole.get(name))
    return f"{wrong[0]} (and {len(wrong) - 1} more)" if wrong else ""


# ---------------------------------------------------------------------------------------------------------- the matrix


def prepare(folder: Path) -> None:
    """What the programs begin with, in small."""
    from helpers.tiny_pipeline import write_tiny_pipeline
    from inpaint_gif.clip.dish_names import LEARNED, vocabulary
    from inpaint_gif.clip.flags import CLIPFlags
    from inpaint_gif.clip.formats import save_folder
    from inpaint_gif.clip.trainer import new_checkpoint

    write_tiny_pipeline(folder / "sd")
    flags = CLIPFlags(dim=32, size=32, layers=1, width=32, patch=16, text_width=32, text_layers=1)
    save_folder(
        folder / "clip", new_checkpoint(flags, vocabulary([text for names in LEARNED.values() for text in names]))
    )
    program, flags = PROGRAMS["01_train"]
    run_main(program, *flags, "--out", folder / "digits")


def warm() -> None:
    """Import all that the children will need."""
    for program, _ in PROGRAMS.values():
        load_program(program)
    for module in WORK:
        importlib.import_module(module)
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401


def kill_one(name: str, folder: Path, last: int, whole: dict[str, str], seeds: list) -> str:
    """Kill a run at one operation and resume it. Returns what is wrong afterwards, or ""."""
    program, flags = PROGRAMS[name][0], seeds
    run, log = folder / f"{name}-{last}", folder / f"{name}-{last}.log"
    code, _ = live(program, [*flags, "--out", run], run, log, last)
    if code != -signal.SIGKILL:
        return f"was not killed, but ended with {code}: {last_line(log)}"
    begun = (run / "config.json").exists()
    code, _ = live(program, ["--resume", run] if begun else [*flags, "--out", run], run, log)
    said = (
        difference(run, whole)
        if code == 0
        else f"{'resumed' if begun else 'begun again'}, it ended with {code}: {last_line(log)}"
    )
    shutil.rmtree(run, ignore_errors=True)
    return said


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1][-300:]


def kill_all(
    names: list[str], sample: int | None, seed: int, folder: Path, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """{program: {operations, killed, faults: {operation: what is wrong}}}"""
    warm()
    prepare(folder / "parts")
    results = {}
    for name in names:
        began, (program, flags) = time.monotonic(), PROGRAMS[name]
        flags = [str(flag).replace("PARTS", str(folder / "parts")) for flag in flags]
        run, log = folder / f"{name}-whole", folder / f"{name}-whole.log"
        code, operations = live(program, [*flags, "--out", run], run, log)
        if code:
            raise SystemExit(f"{name}: left alone, it ended with {code}: {last_line(log)}")
        whole = state_of(run)
        chosen = list(range(len(operations)))
        if sample is not None:
            chosen = sorted(random.Random(f"{seed} {name}").sample(chosen, min(sample, len(chosen))))
        faults = {
            f"{last}: {operations[last]}": said
            for last in chosen
            if (said := kill_one(name, folder, last, whole, flags))
        }
        again, _ = live(program, [*flags, "--out", folder / f"{name}-again"], folder / f"{name}-again", log)
        if said := difference(folder / f"{name}-again", whole):
            faults["twice without a kill"] = said
        results[name] = {"operations": len(operations), "killed": len(chosen), "faults": faults}
        tell(
            f"{name:18} {len(operations):5} operations, {len(chosen):5} killed, {len(faults):3} wrong, {time.monotonic() - began:5.0f} s"
        )
        for where, said in faults.items():
            tell(f"    {where}\n        {said}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--programs",
        nargs="+",
        choices=PROGRAMS,
        default=list(PROGRAMS),
        metavar="NAME",
        help="programs to kill: " + ", ".join(PROGRAMS),
    )
    parser.add_argument(
        "--sample", type=int, help="number of operations of each program, chosen by chance; by default all"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        os.chdir(folder)
        results = kill_all(
            args.programs, args.sample, args.seed, Path(folder).resolve(), lambda line: print(line, flush=True)
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    wrong = sum(len(result["faults"]) for result in results.values())
    print(f"{sum(result['killed'] for result in results.values())} kills, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""The calls of the fuzz: a valid call of a program, with one or two of its flags given something bad."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from common.io.ranges import MAY_BE_EMPTY, leaves, marks, range_of

CPU = {"--device": ["cpu"]}
FEW = CPU | {"--precision": ["no"], "--steps": ["2"], "--save-every": ["1"], "--sample-every": ["100"]}
TUNED = FEW | {
    "--model": ["IN/sd"],
    "--size": ["32"],
    "--batch-size": ["2"],
    "--sample-steps": ["1"],
    "--measure": ["2"],
}
DRAWN = FEW | {"--batch-size": ["2"], "--sampler": ["ddim:2"], "--model": ["IN/sd"], "--n": ["4"], "--guidance": ["2"]}
CLIP = {"--backend": ["transformers"], "--clip": ["IN/clip"]}

# A call that is accepted and ends soon. "" holds the words without a flag; IN is the folder of inputs.
VALID: dict[str, dict[str, list[str]]] = {
    "01_ddpm_mnist/train.py": FEW | {"--data": ["digits"], "--size": ["8"], "--channels": ["8", "16"], "--batch-size": ["8"], "--sampler": ["ddim:2"], "--out": ["run"]},
    "01_ddpm_mnist/sample.py": CPU | {"--model": ["IN/pixels"], "--n": ["2"], "--sampler": ["ddim:2"], "--out": ["a.png"]},
    "01_ddpm_mnist/toy_2d.py": {"--steps": ["2"], "--n": ["10"], "--sampler": ["ddim:2"], "--out": ["a.png"]},
    "02_cfg_pokemon/train.py": FEW | {"--n": ["8"], "--size": ["16"], "--channels": ["8", "16"], "--text-dim": ["32"], "--batch-size": ["4"], "--sampler": ["ddim:2"], "--out": ["run"]},
    "02_cfg_pokemon/sample.py": CPU | {"": ["a red one"], "--model": ["IN/words"], "--n": ["2"], "--sampler": ["ddim:2"], "--out": ["a.png"]},
    "02_cfg_pokemon/evaluate.py": CPU | {"--model": ["IN/words"], "--n": ["2"], "--sampler": ["ddim:1"], "--scales": ["1"], "--out": ["out"]},
    "02_cfg_pokemon/caption_sensitivity.py": CPU | {"--model": ["IN/words"], "--n": ["4"]},
    "02_cfg_pokemon/memorization.py": CPU | {"--model": ["IN/words"], "--n": ["4"], "--n-train": ["8"], "--sampler": ["ddim:1"], "--out": ["out"]},
    "02_cfg_pokemon/ablations.py": CPU | {"": ["size"], "--steps": ["1"], "--n": ["4"], "--out": ["out"]},
    "03_ddim_schedules/ablate.py": CPU | {"": ["sampler=ddim", "train_steps=2", "batch_size=8", "channels=8-16", "size=8", "n=40", "steps=2"], "--lab": ["lab"], "--out": ["out"]},
    "03_ddim_schedules/interpolate.py": CPU | {"--model": ["IN/pixels"], "--frames": ["3"], "--steps": ["2"], "--out": ["out"]},
    "03_ddim_schedules/invert.py": CPU | {"--model": ["IN/pixels"], "--images": ["0", "1"], "--steps": ["2"], "--out": ["out"]},
    "03_ddim_schedules/activation_memory.py": {"--size": ["8"], "--channels": ["8", "16"], "--batch-size": ["2"]},
    "04_latent_sd/train_vae.py": FEW | {"--data": ["creatures"], "--n": ["8"], "--size": ["16"], "--channels": ["8", "16"], "--batch-size": ["4"], "--held-out": ["4"], "--out": ["run"]},
    "04_latent_sd/train.py": FEW | {"--data": ["IN/set"], "--n": ["8"], "--vae": ["IN/sd"], "--channels": ["8", "16"], "--text-dim": ["32"], "--batch-size": ["4"], "--sampler": ["ddim:2"],
                                    "--workers": ["0"], "--cache": ["cache"], "--out": ["run"]},
    "04_latent_sd/sample.py": CPU | {"": ["a red one"], "--model": ["IN/sd"], "--n": ["2"], "--sampler": ["ddim:2"], "--out": ["a.png"]},
    "04_latent_sd/evaluate.py": CPU | {"--model": ["IN/sd"], "--n": ["4"], "--scales": ["1"], "--sampler": ["ddim:1"], "--data": ["creatures"], "--out": ["out"]},
    "04_latent_sd/benchmark_latents.py": CPU | {"--data": ["creatures"], "--n": ["8"], "--size": ["16"], "--channels": ["8", "16"], "--batch-size": ["4"], "--epochs": ["2"], "--workers": ["0"]},
    "05_finetune_diffusers/generate.py": CPU | {"": ["a red one"], "--model": ["IN/sd"], "--n": ["1"], "--steps": ["2"], "--size": ["32"], "--out": ["out"]},
    "05_finetune_diffusers/studies/prompt_weighting.py": CPU | {"": ["a red++ one"], "--model": ["IN/sd"], "--n": ["1"], "--steps": ["2"], "--out": ["out"]},
    "05_finetune_diffusers/restore.py": CPU | {"--model": ["IN/sd"], "--n": ["1"], "--steps": ["4"], "--strength": ["0.5"], "--guidance": ["1"], "--out": ["out"]},
    "05_finetune_diffusers/studies/strength.py": CPU | {"--model": ["IN/sd"], "--n": ["2"], "--steps": ["4"], "--strength": ["0.5"], "--guidance": ["1"], "--out": ["out"]},
    "05_finetune_diffusers/train_unconditional.py": {key: FEW[key] for key in FEW} | {"--n": ["8"], "--size": ["16"], "--channels": ["8", "16"], "--batch-size": ["4"], "--sample-steps": ["1"], "--out": ["run"]},
    "05_finetune_diffusers/ddpm_package.py": CPU | {"--n": ["100"], "--size": ["16"], "--dim": ["8"], "--mults": ["1", "2"], "--samples": ["4"], "--sample-steps": ["2"], "--steps": ["2"], "--out": ["run"]},
    "05_finetune_diffusers/studies/runs.py": {"": ["IN/results"], "--out": ["out"]},
    "05_finetune_diffusers/finetune.py": TUNED | {"--n": ["4"], "--prompts": ["a red one"], "--out": ["run"]},
    "05_finetune_diffusers/lora.py": TUNED | {"--n": ["4"], "--rank": ["2"], "--prompts": ["a red one"], "--out": ["run"]},
    "05_finetune_diffusers/dreambooth.py": TUNED | {"--poses": ["2"], "--class-images": ["2"], "--prompts": ["a {}"], "--out": ["run"]},
    "05_finetune_diffusers/controlnet.py": TUNED | {"--n": ["4"], "--out": ["run"]},
    "06_inpaint_gif/train_clip.py": {key: FEW[key] for key in FEW if key != "--sample-every"} | {"--size": ["32"], "--patch": ["16"], "--width": ["32"], "--layers": ["1"], "--text-width": ["32"],
                                     "--text-layers": ["1"], "--dim": ["16"], "--batch-size": ["6"], "--n": ["12"], "--held-out": ["8"], "--out": ["run"]},
    "06_inpaint_gif/train_text2dish.py": DRAWN | CLIP | {"--names": ["米饭"], "--out": ["run"]},
    "06_inpaint_gif/train_inpaint.py": DRAWN | {"--windows": ["1"], "--holes": ["1"], "--out": ["run"]},
    "06_inpaint_gif/train_controlnet.py": DRAWN | {"--windows": ["1"], "--out": ["run"]},
    "06_inpaint_gif/make_gif.py": CPU | CLIP | {"": ["米饭"], "--dish": ["IN/dish"], "--model": ["IN/holes"], "--engine": ["inpaint"], "--sampler": ["ddim:2"], "--candidates": ["1"], "--frames": ["3"],
                                        "--camera": ["left:1"], "--enlarge": ["1"], "--out": ["a.gif"]},
    "06_inpaint_gif/generate.py": CPU | CLIP | {"": ["米饭"], "--model": ["IN/dish"], "--n": ["1"], "--sampler": ["ddim:2"], "--region": ["left:番茄汤"], "--out": ["a.png"]},
    "06_inpaint_gif/convert_clip.py": {"--clip": ["IN/clip"], "--out": ["clip.pt"]},
    "06_inpaint_gif/evaluate_clip.py": CPU | CLIP | {"--n": ["4"], "--out": ["out"]},
    "06_inpaint_gif/evaluate_gif.py": CPU | CLIP | {"--dish": ["IN/dish"], "--only": ["holes"], "--engines": ["reflect"], "--n": ["1"], "--frames": ["3"], "--sampler": ["ddim:1"], "--out": ["out"]},
    "common/evaluate/__main__.py": CPU | {"": ["IN/samples.npy"], "--data": ["digits"], "--json": ["a.json"]},
    "common/grade/__main__.py": {"": ["01"], "--submission": ["IN/answers.py"], "--seconds": ["5"], "--json": ["a.json"]},
    "common/handout.py": {"--chapters": ["1"], "--out": ["out"]},
    "common/grade/show_exercises.py": {"": ["01"], "--submission": ["IN/answers.py"], "--out": ["a.png"], "--lang": ["zh"]},
    "common/data/export_folder.py": {"": ["creatures", "out"], "--n": ["4"], "--size": ["16"]},
    "common/data/export_lmdb.py": {"": ["IN/set", "a.lmdb"], "--size": ["8"]},
    "common/data/creatures/__main__.py": {"--n": ["4"], "--size": ["16"], "--out": ["a.png"]},
    "common/data/dishes/__main__.py": {"--n": ["4"], "--size": ["16"], "--out": ["a.png"]},
}  # fmt: skip
# Valid calls of these take minutes, or change the course itself: they get only what must be refused at once.
REFUSALS = {
    "common/evaluate/train_creature_classifier.py": {}, "common/evaluate/train_digit_classifier.py": {}, "common/grade/notebook.py": {"": ["check", "01"]}, "common/grade/strip_solutions.py": {"": ["01"]},
    "04_latent_sd/exercises/illusions.py": {}, "common/claims/__main__.py": {}, "common/doctor/__main__.py": {}, "common/demo/__main__.py": {},
    "common/teach/gradescope.py": {}, "common/teach/leaderboard.py": {"": ["01"]}, "common/teach/slides.py": {"": ["01"], "--out": ["out"]},
    "bench/busy.py": {}, "bench/quality_at_time.py": {}, "bench/sampler_overhead.py": {}, "bench/sampling_time.py": {}, "bench/step.py": {},
}  # fmt: skip
READS = (
    "model",
    "data",
    "vae",
    "clip",
    "start",
    "resume",
    "use",
    "controlnet",
    "dish",
    "text",
    "image",
    "images",
    "mask",
    "subject",
    "submission",
    "samples",
    "runs",
    "a",
    "b",
    "judge",
    "inpaint",
    "data_dir",
    "weights",
)  # flags that name an input
WRITES = ("out", "json", "sheet", "folder", "cache", "lab", "keep")
NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "1e99",
    "-1",
    "0",
    "1000000000",
    "9" * 25,
    "9" * 5000,
    "1e-320",
    "-0.0",
    "abc",
    "",
    "1,000",
    "0x10",
    "٣",
    "1e400",
    "½",
]
TEXTS = [
    "",
    " ",
    "\udcff",
    "a\udcffb",
    "a" * 100_000,
    "../..",
    "%s%n",
    "--",
    "\n",
    "{0.__class__}",
    "0",
    "-",
    "~",
    "a:b:c",
    "=",
    ",",
    "\x1b[31m",
    "番茄" * 500,
    "ddim:0",
    "ddim:99999999999999999999",
    "ddim:5:eta=nan",
    "right:",
    ":",
    "1>",
    ">",
]
OUTPUTS = [
    "",
    ".",
    "/proc",
    "/dev/full",
    "/proc/nothing/a.png",
    "old.png",
    "old.png/b.png",
    "a" * 300,
    "a" * 300 + ".png",
    "\udcff.png",
    "IN/hostile/folder.png",
    "IN/hostile/denied/a.png",
    "no_suffix",
    ".png",
    "IN/hostile/loop/a.png",
    "x/../../../../../../../../../../../../dev/full",
    "a\nb.png",
    "old",
    "old.json",
    "old.gif",
]


@dataclass(frozen=True)
class Call:
    program: str
    words: tuple[str, ...]
    must_refuse: bool  # whether exit code 0 would be wrong
    out: str  # what an accepted call must have written
    why: str


def calls(n: int, seed: int, programs: dict[str, Any], hostile: list[str]) -> list[Call]:
    """n calls, the same ones for the same seed. programs: the Args of each program by its path."""
    rng = random.Random(seed)
    made: dict[tuple, Call] = {}
    while len(made) < n:
        program = rng.choice(sorted(programs))
        call = make(rng, program, programs[program], hostile)
        if call:
            made.setdefault((call.program, call.words), call)
    return list(made.values())


def make(rng: random.Random, program: str, args_type: Any, hostile: list[str]) -> Call | None:
    """A valid call with one flag changed, or (one in five) two."""
    flags = {key: list(value) for key, value in (VALID.get(program) or REFUSALS[program]).items()}
    hints, must, why = get_type_hints(args_type, include_extras=True), False, []
    for field in rng.sample(fields(args_type), min(len(fields(args_type)), 1 + (rng.random() < 0.2))):
        name = flag_of(field.name, hints[field.name])
        valid = flags.get(name, flags.get("", []))[:1]
        values, bad = mutation(
            rng,
            field,
            hints[field.name],
            related(program, field.name, valid, hostile) if rng.random() < 0.6 else hostile,
        )
        must |= bad and (bool(values) or Positional not in marks(hints[field.name]))
        positional = Positional in marks(hints[field.name]) or any(
            "Positional" in repr(mark) for mark in marks(hints[field.name])
        )
        if bool in leaves(hints[field.name]) and values in (["on"], ["off"]):
            name, values = (f"--no-{name[2:]}" if values == ["off"] else name), []
        if positional:
            place = sum(
                any("Positional" in repr(mark) for mark in marks(hints[other.name]))
                for other in fields(args_type)[: fields(args_type).index(field)]
            )
            if program.endswith("ablate.py"):
                values, bad = study(rng)
                must |= bad
                flags[""] = [word for word in flags[""] if word.split("=")[0] != values[0].split("=")[0]] + values
            else:
                words = flags.get("", [])
                flags[""] = words[:place] + values + (words[place + 1 :] if words else [])
        else:
            flags[name] = values
        why.append(f"{name} {' '.join(values)[:60]}")
    if program in REFUSALS and (
        not must
        or any("/dev/full" in value or "/proc" in value for value in flags.get("--json", []) + flags.get("--out", []))
    ):
        return None
    if rng.random() < 0.02:
        flags, must = flags | {"--no-such-flag": ["1"]}, True
    words = [word for name, values in flags.items() if name for word in (name, *values)]
    out = (flags.get("--out") or flags.get("--json") or [""])[0]
    return Call(program, tuple([*flags.get("", []), *words]), must, out, "; ".join(why))


def flag_of(name: str, hint: Any) -> str:
    """The flag of a field: its name, or that given to tyro.conf.arg."""
    given = [mark.name for mark in marks(hint) if isinstance(getattr(mark, "name", None), str)]
    return "--" + (given or [name.replace("_", "-")])[0]


def related(program: str, name: str, valid: list[str], hostile: list[str]) -> list[str]:
    """Damaged inputs of the kind that the flag takes, which get further than others."""
    kind = (
        "set"
        if name in ("data", "subject")
        else RESUMED.get(program, "pixels")
        if name == "resume"
        else Path((valid or ["x"])[0]).name
    )
    return [word for word in hostile if word.startswith(f"IN/hostile/{kind}_")] or hostile


# whose runs are damaged in inputs.py; others meet those of chapter 1
RESUMED = {"02_cfg_pokemon/train.py": "words", "05_finetune_diffusers/lora.py": "lora"}


def mutation(rng: random.Random, field: Any, hint: Any, hostile: list[str]) -> tuple[list[str], bool]:
    """(values for a flag, whether they must be refused)."""
    kinds = set(leaves(hint))
    if get_origin(hint) is Literal or any(get_origin(part) is Literal for part in get_args(hint)):
        return [rng.choice(["magic", "", "\udcff", "0"])], True
    if bool in kinds:
        return [rng.choice(["on", "off"])], False
    many = "tuple" in str(hint)
    if many and rng.random() < 0.2:
        empty_is_bad = bool(field.default) and field.default.__class__ is tuple and MAY_BE_EMPTY not in marks(hint)
        return [], empty_is_bad
    if {int, float} & kinds:
        text = rng.choice(NUMBERS)
        limits = range_of(field.name, hint)
        try:
            number = (float if float in kinds else int)(text)
        except (ValueError, OverflowError):
            return [text], True
        return [text] * (2 if "tuple[float, float]" in str(hint) else 1), number not in limits
    if field.name in WRITES:
        text = rng.choice(OUTPUTS)
        return [text], text in (
            "",
            "/proc",
            "/dev/full",
            "/proc/nothing/a.png",
            "old.png/b.png",
            "a" * 300,
            "a" * 300 + ".png",
            "\udcff.png",
        )
    if field.name in READS or Path in kinds:
        text = rng.choice(hostile if rng.random() < 0.8 else TEXTS)
        return [text], "\udcff" in text
    text = rng.choice(TEXTS if rng.random() < 0.9 else hostile)
    return [text], "\udcff" in text


def study(rng: random.Random) -> tuple[list[str], bool]:
    """A word of ablate.py's."""
    key = rng.choice(
        [
            "lr",
            "n",
            "batch_size",
            "layers",
            "channels",
            "size",
            "seed",
            "train_steps",
            "steps",
            "eta",
            "noise_seed",
            "sampler",
            "data",
            "loss",
            "weight",
            "optimizer",
            "clip",
            "variance",
            "schedule",
            "prediction",
            "model",
            "ema",
            "learned_variance",
            "colour",
            "",
        ]
    )
    value = rng.choice(
        ["nan", "0", "-1", "abc", "", "inf", "1e99", "9" * 25, "\udcff", "8-x", ",", "0-8", "1000000000"]
    )
    bad = (
        key in ("lr", "n", "batch_size", "layers", "size", "train_steps", "steps")
        or "\udcff" in value
        or (key == "channels")
    )
    return [f"{key}={value}"], bad


def hostile_words(folder: Path) -> list[str]:
    return ["IN/hostile/" + path.name for path in sorted(folder.iterdir())] + [
        "",
        "nowhere",
        "IN/plain",
        "IN/a.png",
        "/dev/zero",
        "/dev/null",
        "/",
        "a" * 300,
        "hub:a/b",
        "hub:",
    ]


def grouped(made: list[Call]) -> Iterator[tuple[str, list[Call]]]:
    for program in sorted({call.program for call in made}):
        yield program, [call for call in made if call.program == program]

"""Habits of the code that a linter does not know:
standard terms, distinct names, typed parameters, short core files.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from helpers.programs import ROOT
from helpers.source import PACKAGES, PROGRAMS, SOURCES, label, tree

# Private words that the code once had, and the terms of the field that took their place.
PRIVATE = {
    "Level": "NoiseLevel",
    "Path": "NoiseLevels, CameraPath",
    "Clip": "ClipMode, CLIPTextEncoder",
    "Guess": "Prediction",
    "GuessWithVariance": "Prediction",
    "Judge": "Evaluator, CreatureClassifier",
    "Draw": "BatchRandom",
    "Errors": "LossTerms",
    "Painter": "TextToImagePipeline, ConditionalUNet",
    "PainterAlone": "ConditionalUNet",
    "ReaderAndPainter": "ConditionalUNet",
    "HolePainter": "ConditionalUNet",
    "NamePainter": "ConditionalUNet",
    "Artist": "TextToImagePipeline",
    "Wish": "SamplingConfig",
    "How": "SamplingConfig",
    "Reader": "TextEncoder",
    "NameReader": "CLIPNameEncoder",
    "Exam": "Evaluator",
    "sit": "evaluate",
    "sitting": "evaluation",
    "Studio": "RunContext",
    "Cast": "Models",
    "gather": "load_models",
    "Order": "DishQuery",
    "take_order": "parse_dish_name",
    "door": "backend",
    "doors": "backends",
    "DOORS": "BACKENDS",
    "chosen_door": "backend",
    "second_door": "backend",
    "Form": "CLIPCheckpoint",
    "Dice": "NoiseSource",
    "dice": "noise, generator",
    "same_dice": "shared_noise",
    "luck": "generator, u",
    "deal": "random_splits",
    "Given": "PrecomputedFeatures",
    "spoil": "corrupt",
    "lessons": "training_set",
    "SLOW": "lr_scales",
    "slow": "lr_scales",
    "pick": "batch_indices",
    "unmix": "to_x0_eps",
    "painter": "pipeline, unet",
    "artist": "pipeline",
    "wish": "config",
    "heard": "caption_sensitivity",
    "exam": "evaluator",
}
PRIVATE_FLAGS = {
    "door": "backend",
    "drop": "caption_dropout",
    "accumulate": "gradient_accumulation",
    "batch": "batch_size",
    "share": "new_fraction, or a fraction of what",
    "tries": "candidates",
}
LINES = {  # the most lines that the files which a reader studies first may have, together where several are named
    ("common/models/unet.py",): 300,
    ("common/diffusion/samplers.py",): 170,
    ("common/training/loop.py",): 160,
    ("01_ddpm_mnist/train.py", "01_ddpm_mnist/ddpm_mnist/trainer.py"): 200,
}
LONGHAND = {  # what a chapter teaches is written out there and imported from `common` afterwards, under the same name
    "02_cfg_pokemon/cfg_pokemon/guidance.py",
    "03_ddim_schedules/ddim_schedules/solvers.py",
}
DRAWING = ("common/data/creatures/", "common/data/dishes/")  # code that draws pictures picks one of many, and has luck
OURS = sorted({*PACKAGES, *PROGRAMS, *(path for path in SOURCES if label(path).startswith("bench/"))})


def texts(path: Path) -> list[tuple[int, str]]:
    """Docstrings and help texts, which are the strings that stand alone as a statement, each with its line."""
    return [
        (node.lineno, node.value.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_help_texts_are_noun_phrases(path):
    """ "Random seed of the initial noise.", not "Of the initial noise."."""
    assert [f"line {line}: {text[:60]}" for line, text in texts(path) if text.lstrip().startswith("Of ")] == []


def bound_names(path: Path) -> list[tuple[int, str]]:
    """Every name that a file gives to something:
    classes, functions, parameters, variables, fields, attributes, aliases of imports.
    """
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.attr))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [(node.lineno, alias.asname) for alias in node.names if alias.asname]
    return names


@pytest.mark.parametrize("path", OURS, ids=label)
def test_names_are_the_fields_own(path):
    private = {
        name: term
        for name, term in PRIVATE.items()
        if name not in ("pick", "luck") or not label(path).startswith(DRAWING)
    }
    assert [
        f"line {line}: {name}, better {private[name]}" for line, name in bound_names(path) if name in private
    ] == []


@pytest.mark.parametrize("path", OURS, ids=label)
def test_flags_are_named_as_in_diffusers(path):
    fields = [
        (field.lineno, field.target.id)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and "Args" in node.name
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert [
        f"line {line}: {name}, better {PRIVATE_FLAGS[name]}" for line, name in fields if name in PRIVATE_FLAGS
    ] == []


def test_no_two_classes_share_a_name():
    """In `common` and the chapters' packages. Each program has its own Args and Preset."""
    homes = defaultdict(list)
    for path in PACKAGES:
        if label(path) in LONGHAND:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and node.name not in ("Args", "Preset"):
                homes[node.name].append(label(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize("path", PACKAGES, ids=label)
def test_args_have_a_type(path):
    """A function takes what it needs by name; where it needs all flags of a program, it says whose."""
    untyped = [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name != "__torch_function__"  # whose parameters torch names
        for arg in node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        if arg.arg == "args" and arg.annotation is None
    ]
    assert untyped == []


@pytest.mark.parametrize("names", LINES, ids=" + ".join)
def test_the_files_to_read_first_are_short(names):
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names)
    assert lines <= LINES[names], f"{lines} lines"

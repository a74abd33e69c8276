"""The layers of the course: no module of `common` imports a higher layer or a chapter, and no chapter imports another."""

import ast
import sys

import pytest

from helpers.programs import ROOT

CHAPTERS = {folder.name: next(each.parent.name for each in folder.glob("*/__init__.py")) for folder in sorted(ROOT.glob("0[1-9]_*"))}  # folder: package
COMMON = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sorted((ROOT / "common").rglob("*.py"))}
LAYERS = ["errors", "random", "io", "diffusion", "models", "data", "training", "evaluate"]  # each may import what stands before it
APART = {"cli": {"errors", "io"}, "viz": {"errors", "io"}, "grade": {"errors", "random", "io", "cli", "viz"}}  # what these may import
USES = {"data": {"viz"}, "training": {"cli", "viz"}, "evaluate": {"cli", "viz"}}  # ... and which layers may use them
PROGRAMS = {path for path in COMMON if "    run(main, Args)\n" in path.read_text(encoding="utf-8")}  # they may use cli and viz


def imports(path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "common"}
    return found


def reached(path) -> set[str]:
    """The parts of `common` that a file imports."""
    return {module.split(".")[1] for module in imports(path) if module.startswith("common.")}


@pytest.mark.parametrize("path", COMMON, ids=COMMON.values())
def test_no_module_of_common_imports_a_higher_layer(path):
    part = (COMMON[path].split(".") + [""])[1]
    if part == "":
        allowed = {"io"}
    elif part in APART:
        allowed = APART[part] | {part}
    else:
        assert part in LAYERS, f"{COMMON[path]} belongs to no layer"
        allowed = set(LAYERS[: LAYERS.index(part) + 1]) | USES.get(part, set()) | ({"cli", "viz"} if path in PROGRAMS else set())
    assert reached(path) <= allowed, f"{COMMON[path]} imports {reached(path) - allowed}"


def test_common_imports_no_chapter():
    assert len(CHAPTERS) == 6 and len(COMMON) > 50  # the test looks at something
    for path, name in COMMON.items():
        above = {module.split(".")[0] for module in imports(path)}
        assert not above & set(CHAPTERS.values()), f"{name} imports a chapter"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_chapter_imports_another(chapter):
    for path in (ROOT / chapter).rglob("*.py"):
        others = {module.split(".")[0] for module in imports(path)} & (set(CHAPTERS.values()) - {CHAPTERS[chapter]})
        assert not others, f"{path} imports {others}"


LIGHT = ("common", "common.cli", "common.errors", "common.training.settings", "common.training.flags", "common.models.find_model",
         *(f"common.io.{name}" for name in ("process", "tables", "files", "hub", "ranges", "weight_files")))  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_modules_stay_light(name):
    """`--help` answers at once only while these import nothing heavy at their top."""
    path = next(path for path, module in COMMON.items() if module == name)
    top = {module.split(".")[0] for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, (ast.Import, ast.ImportFrom))
           for module in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])}  # fmt: skip
    assert top <= set(sys.stdlib_module_names) | {"common"}, name

"""The structure of the course: layers, cycles, programs,
and how much one folder shows (CONTRIBUTING.md describes it).
"""

import ast
import sys
from pathlib import Path

import pytest

from helpers.programs import ROOT
from helpers.source import (
    CHAPTER_PROGRAMS,
    CHAPTERS,
    PROGRAMS,
    SHARED,
    SOURCES,
    imported,
    imports,
    imports_at_top,
    is_program,
    label,
    module_name,
    own_files,
    tree,
)

# each may import what stands before it
LAYERS = ["errors", "random", "io", "diffusion", "models", "data", "training", "evaluate", "doctor"]
APART = {  # what these may import
    "cli": {"errors", "io"},
    "viz": {"errors", "io"},
    "grade": {"errors", "random", "io", "cli", "viz"},
    "handout": {"errors", "io", "cli", "grade"},
    "teach": {"errors", "io", "cli", "grade"},
    "claims": {"errors", "io", "cli"},
    "demo": {"errors", "random", "io", "diffusion", "models", "data", "evaluate", "cli", "viz", "grade"},
}
USES = {
    "data": {"viz"},
    "training": {"cli", "viz"},
    "evaluate": {"cli", "viz"},
    "doctor": {"cli", "viz", "grade"},
}  # ... and which layers may use them

MODULES = {module_name(path): path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"}
MOST_ENTRIES = 12  # what one folder may show: modules and folders with code
COMMANDS = {
    "evaluate/",
    "grade/",
    "doctor/",
    "claims/",
    "demo/",
}  # of common/: each is one command, and is not counted


# ---------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("path", SHARED, ids=label)
def test_no_module_of_common_imports_a_higher_layer(path):
    part = (module_name(path).split(".") + [""])[1]
    if part == "":
        allowed = {"io"}
    elif part in APART:
        allowed = APART[part] | {part}
    else:
        assert part in LAYERS, f"{label(path)} belongs to no layer"
        allowed = (
            set(LAYERS[: LAYERS.index(part) + 1])
            | USES.get(part, set())
            | ({"cli", "viz"} if is_program(path) else set())
        )
    reached = {module.split(".")[1] for module in imports(path) if module.startswith("common.")}
    assert reached <= allowed, f"{label(path)} imports {reached - allowed}"


def test_common_imports_no_chapter():
    assert len(CHAPTERS) == 6 and len(SHARED) > 50  # the test looks at something
    for path in SHARED:
        assert not {module.split(".")[0] for module in imports(path)} & set(CHAPTERS.values()), (
            f"{label(path)} imports a chapter"
        )


def test_nothing_imports_the_demo():
    """It stands above the chapters, whose packages it loads by name while it runs (common/demo/pictures/models.py)."""
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "tests" and not path.is_relative_to(ROOT / "common" / "demo"):
            assert not [name for name in imports(path) if name.startswith("common.demo")], label(path)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_chapter_imports_another(chapter):
    for path in (ROOT / chapter).rglob("*.py"):
        others = {module.split(".")[0] for module in imports(path)} & (set(CHAPTERS.values()) - {CHAPTERS[chapter]})
        assert not others, f"{label(path)} imports {others}"


# ---------------------------------------------------------------------------------------------------------- cycles


def project_imports(path: Path) -> set[str]:
    """The modules of the project that a file imports. `from package import module` counts as the module alone."""
    chapter = path.relative_to(ROOT).parts[0]
    named = imports(path)
    # programs and exercises, by bare name
    local = {f"{chapter}:{module}" for module in named} if chapter in CHAPTERS else set()
    found = {module for module in named | local if module in MODULES}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and all(f"{node.module}.{alias.name}" in MODULES for alias in node.names):
            found.discard(node.module)
    return found - {module_name(path)}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of two or more modules that import each other,
    directly or through others (Tarjan's strongly connected components).
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            position = stack.index(node)
            group, stack[position:] = stack[position:], []
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other_in_a_cycle():
    assert cycles({name: project_imports(path) for name, path in MODULES.items()}) == []


# -------------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("path", PROGRAMS, ids=label)
def test_no_program_imports_another(path):
    others = {name for name in project_imports(path) if is_program(MODULES[name])}
    assert not others, f"{label(path)} imports {others}"


def test_no_module_of_a_chapters_package_imports_a_program():
    for path in SOURCES:
        if module_name(path).split(".")[0] in CHAPTERS.values():
            others = {name for name in project_imports(path) if is_program(MODULES[name])}
            assert not others, f"{label(path)} imports {others}"


def heavy(path: Path, seen: set[Path]) -> set[str]:
    """The packages beyond the standard library that are loaded with a module, each with the module that imports it."""
    seen.add(path)
    found = set()
    for module in imports_at_top(path):
        for name in (module, f"{path.relative_to(ROOT).parts[0]}:{module}"):
            if name in MODULES and MODULES[name] not in seen:
                found |= heavy(MODULES[name], seen)
        top = module.split(".")[0]
        if (
            top not in sys.stdlib_module_names
            and top not in {"common", "bench", *CHAPTERS.values()}
            and f"{path.parent.name}:{top}" not in MODULES
        ):
            found.add(f"{top} (in {label(path)})")
    return found


@pytest.mark.parametrize("path", PROGRAMS, ids=label)
def test_help_loads_nothing_heavy(path):
    """`--help` answers at once, because a program and what it imports at its top load only the standard library and
    tyro, which reads flags.
    """
    assert {each for each in heavy(path, set()) if not each.startswith("tyro ")} == set()


@pytest.mark.parametrize("path", CHAPTER_PROGRAMS, ids=label)
def test_a_program_is_its_flags_and_a_main_with_one_import(path):
    """Everything else lives in the chapter's package, with its imports at the top of the file."""
    functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == ["main"], (
        f"{label(path)} defines {[each.name for each in functions]}"
    )
    inside = [node for node in ast.walk(functions[0]) if imported(node)]
    assert len(inside) <= 1, f"{label(path)}: main has {len(inside)} import statements"


# ----------------------------------------------------------------------------------------------- folders and packages


def holds_no_logic(node: ast.stmt) -> bool:
    """A docstring, an import, __all__, or one of two calls:
    run(main, Args) of a program, and the settings that `common` makes.
    """
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node) == "prepare_process()"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    return ast.unparse(node) == "if __name__ == '__main__':\n    run(main, Args)"


@pytest.mark.parametrize("path", own_files("__init__.py") + own_files("__main__.py"), ids=label)
def test_init_and_main_hold_no_logic(path):
    assert [ast.unparse(node).splitlines()[0] for node in tree(path).body if not holds_no_logic(node)] == []


def entries(folder: Path) -> list[str]:
    """What a folder shows a reader of the code: its modules, and the folders that hold code. A file and its translation
    (lesson.py, lesson.zh.py) are one.
    """
    modules = {path.name.replace(".zh.py", ".py") for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    folders = {
        path.name + "/"
        for path in folder.iterdir()
        if path.is_dir() and any(each.is_relative_to(path) for each in SOURCES)
    }
    return sorted(modules | folders)


@pytest.mark.parametrize(
    "folder", sorted({parent for path in SOURCES for parent in path.parents if parent.is_relative_to(ROOT)}), ids=label
)
def test_no_folder_shows_more_than_a_reader_can_take_in(folder):
    holds_commands = folder in (ROOT / "common", ROOT / "tests" / "common")
    shown = [each for each in entries(folder) if not (holds_commands and each in COMMANDS)]
    assert len(shown) <= MOST_ENTRIES, f"{label(folder)} shows {len(shown)}: {', '.join(shown)}"

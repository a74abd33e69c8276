"""The house keeps its storeys: nothing in `common` imports a chapter, no chapter another, and no layer a higher one."""

import ast
import sys

import pytest
from conftest import ROOT

CHAPTERS = sorted(folder.name for folder in ROOT.glob("0[0-9]_*") if folder.is_dir())
COMMON = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
          for path in sorted((ROOT / "common").rglob("*.py"))}  # fmt: skip

# What each module may import from common; schedule <- denoiser <- loss, samplers and unet <- checkpoint <- training.
MAY_IMPORT = {
    "common.encoding": set(),
    "common.user": set(),
    "common.errors": set(),
    "common.random": set(),
    "common.unet": {"errors"},
    "common.ranges": {"errors"},
    "common.memory": {"errors"},
    "common.progress": set(),
    "common.files": {"errors"},
    "common.config_values": {"errors", "ranges"},
    "common.cli": {"encoding", "errors", "files", "ranges"},
    "common.chapter": {"errors"},
    "common.submission": set(),
    "common.schedule": {"errors"},
    "common.denoiser": {"errors", "schedule"},
    "common.vlb": {"errors", "schedule", "denoiser"},
    "common.loss": {"errors", "schedule", "denoiser", "vlb"},
    "common.samplers": {"errors", "memory", "schedule", "denoiser", "random", "vlb"},
    "common.diffusers_config": {"errors", "config_values", "ranges", "schedule", "denoiser", "unet"},
    "common.network": {"errors"},
    "common.hub": {"errors", "network"},
    "common.pipeline_folder": {"errors", "files", "hub", "single_file", "weight_files"},
    "common.weight_files": {"errors", "files"},
    "common.state": {"errors", "weight_files"},
    "common.single_file": {"diffusers_config", "errors", "files", "hub", "state", "text", "weight_files"},
    "common.model_folder": {"errors", "files", "single_file"},
    "common.checkpoint": {"errors", "files", "schedule", "denoiser", "unet", "diffusers_config", "model_folder", "state", "weight_files"},
    "common.training": {"errors", "files", "memory", "random", "unet", "checkpoint", "state"},
    "common.runlog": {"errors", "files", "training"},
    "common.settings": {"errors", "files", "ranges", "cli", "data", "model_folder"},
    "common.run": {"errors", "files", "cli", "data"},
    "common.flags": {"errors", "cli", "settings"},
    "common.vae": {"errors", "unet"},
    "common.vae_checkpoint": {"errors", "config_values", "ranges", "files", "state", "diffusers_config", "checkpoint", "single_file", "vae", "weight_files"},
    "common.vae_loss": {"errors", "random", "loss", "vae"},
    "common.latents": {"errors", "data", "random", "vae"},
    "common.sd_folder": {"errors", "files", "schedule", "diffusers_config", "checkpoint", "model_folder", "vae", "vae_checkpoint", "text"},
    "common.text.transformer": {"errors", "config_values", "ranges"},
    "common.text.tokenizer": {"errors", "files"},
    "common.text.hub": {"errors", "hub", "weight_files"},
    "common.text.encoders": {"errors", "files", "state", "text", "weight_files"},
}
PROGRAMS = {"common.data.export", "common.data.lmdb_cache"}  # of the data layer, beside its __main__s: nothing imports them


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


def modules_of(folder) -> set[str]:
    """Names by which a file in the same folder could import another."""
    return {path.stem for path in folder.glob("*.py")}


def test_common_imports_no_chapter():
    of_chapters = {name for chapter in CHAPTERS for name in modules_of(ROOT / chapter)} - set(sys.stdlib_module_names)
    assert "ddpm" in of_chapters and len(COMMON) > 10  # the test looks at something
    for path, name in COMMON.items():
        reached = {module.split(".")[0] for module in imports(path)}
        assert not reached & (of_chapters | set(CHAPTERS)), f"{name} reaches into a chapter"


def test_no_chapter_imports_another():
    for chapter in CHAPTERS:
        own = modules_of(ROOT / chapter)
        others = {name for other in CHAPTERS if other != chapter for name in modules_of(ROOT / other)} - own
        for path in (ROOT / chapter).rglob("*.py"):
            reached = {module.split(".")[0] for module in imports(path)}
            assert not reached & (others | set(CHAPTERS)), f"{path} reaches into another chapter"


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_layers(name):
    path = next(path for path, module in COMMON.items() if module == name)
    reached = {module.split(".")[1] for module in imports(path) if module.startswith("common.")}
    assert reached <= MAY_IMPORT[name], f"{name} imports {reached - MAY_IMPORT[name]}"


def test_data_imports_only_what_is_below():
    for path, name in COMMON.items():
        if name.startswith("common.data") and not name.endswith("__main__") and name not in PROGRAMS:  # they may use cli and viz
            reached = {module.split(".")[1] for module in imports(path) if module.startswith("common.")}
            assert reached <= {"data", "errors", "files", "hub", "memory", "network", "random"}, name
            assert not imports(path) & PROGRAMS, name


def test_nothing_in_the_layers_imports_what_shows_or_judges():
    """viz, evaluate, attributes and cli are leaves: used by programs, not by the layers."""
    for path, name in COMMON.items():
        if name in MAY_IMPORT or (name.startswith("common.data") and not name.endswith("__main__")):
            assert not imports(path) & {"common.viz", "common.evaluate", "common.attributes", "matplotlib"}, name


def test_the_light_modules_stay_light():
    """`--help` answers at once only while these import nothing heavy at their top."""
    for path, name in COMMON.items():
        if name in ("common", "common.cli", "common.encoding", "common.user", "common.errors", "common.files", "common.hub", "common.ranges", "common.settings",
                    "common.flags", "common.weight_files", "common.model_folder"):
            top = {module.split(".")[0] for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))
                   for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])}  # fmt: skip
            assert top <= set(sys.stdlib_module_names) | {"common"}, name

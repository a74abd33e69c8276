"""State dicts: written, read from a file or a component's folder in any form, and loaded with every key checked."""

import argparse
import hashlib
import json
import re
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError, explain, is_memory
from common.io.files import write_atomically
from common.io.weight_files import DIFFUSERS, find_weights

Net = TypeVar("Net", bound=nn.Module)

# of the attention, until early 2023
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(?P<where>(^|.*\.)attentions\.\d+\.)(?P<old>{'|'.join(OLD_NAMES)})(?P<end>\.(weight|bias))")
PLAIN: list[Any] = [  # classes that hold values and run no code, which trainings store beside the weights: their settings
    argparse.Namespace,
    types.SimpleNamespace,
    *((kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for kind, names in
      ((PurePosixPath, ("PosixPath", "PurePosixPath")), (PureWindowsPath, ("WindowsPath", "PureWindowsPath"))) for name in names),
]  # fmt: skip


def count_parameters(module: nn.Module) -> int:
    """The number of weights of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits that change with any of the parts: tensors, the weights of networks, plain values."""
    digest = hashlib.sha256()
    for part in parts:
        for name, value in sorted(part.state_dict().items()) if isinstance(part, nn.Module) else [("", part)]:
            if isinstance(value, torch.Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                digest.update(json.dumps(value, default=str).encode())
    return digest.hexdigest()[:32]


def write_weights(path: Path, state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file, whole or not at all. dtype: the precision in the file; by default that of the weights"""
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    write_atomically(path, lambda file: file.write(save(weights, metadata={"format": "pt"})))


def read_component(folder: Path, expected: str = DIFFUSERS) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights in a component's folder under today's names, in float32,
    and the file that they come from, for messages.

    One file, shards or a variant, as safetensors or as a pickle: see common/io/weight_files.py.
    """
    found = find_weights(folder, expected)
    state: dict[str, torch.Tensor] = {}
    for file in found.files:
        state |= read_weights(file)
    return new_names(state), found.source


def new_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose attention has today's names: mid_block.attentions.0.query.weight becomes ...to_q.weight."""
    names = {key: OLD_NAME.fullmatch(key) for key in state}
    return {
        found["where"] + OLD_NAMES[found["old"]] + found["end"] if (found := names[key]) else key: value
        for key, value in state.items()
    }


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file in float32, because a CPU is slow in the half precision of shipped weights."""
    return {key: value.float() for key, value in read_tensors(path).items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, or of a state dict that torch.save wrote, as they are stored."""
    if not path.exists():
        raise UserError(f"{path} is missing")
    if path.suffix != ".safetensors":
        return tensors_of(read_pickle(path), path)
    try:
        return load_file(path)
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({explain(problem)})") from problem
    except (SafetensorError, ValueError) as problem:
        kind = kind_of_file(path)
        raise UserError(
            f"{path} holds no weights: {kind}" if kind else f"{path} is damaged ({explain(problem)})"
        ) from problem


def read_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors, plain values and the classes in PLAIN. Code in the file is never run."""
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}" if not path.exists() else f"{path} is a folder, not a checkpoint file"
        )
    try:
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of archives and pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError and more
        raise UserError(
            f"{path} cannot be read as a checkpoint of weights: {why_unreadable(path, problem)}"
        ) from problem


def tensors_of(value: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what torch.load gave, which may lie under "state_dict", as Lightning stores it."""
    while isinstance(value, dict) and "state_dict" in value:
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no state dict but a {type(value).__name__}")
    state = {key: each for key, each in value.items() if isinstance(key, str) and isinstance(each, torch.Tensor)}
    if not state:
        raise UserError(
            f"{path} holds no state dict: there is no tensor under the names {', '.join(map(str, list(value)[:5])) or '(none)'}"
        )
    return state


def why_unreadable(path: Path, problem: Exception) -> str:
    """The reason why torch.load refused a file, found in the file where torch names none.
    Too little memory is no fault of the file.
    """
    if is_memory(problem):
        raise problem
    if (kind := kind_of_file(path)) is not None:
        return kind
    if isinstance(problem, OSError):
        return explain(problem)
    if found := re.search(r"GLOBAL ([\w.]+)", str(problem)):
        return (
            f"it holds an object of {found[1]}, and only tensors and plain values are read, because other objects can run code; "
            "where you trust the file, load it with torch and save its state dict alone"
        )
    if "TorchScript" in str(problem):
        return "it is a TorchScript archive, which holds code; save the state dict of the model instead"
    with open(path, "rb") as file:
        archive = file.read(2) == b"PK"
    return f"it is damaged ({explain(problem)})" if archive else "it is damaged, or torch.save has not written it"


def kind_of_file(path: Path) -> str | None:
    """What a file is that holds no weights, by its first bytes; None where they tell nothing."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return None
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page; download the file itself"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return (
            None if path.suffix == ".safetensors" else "it is in the format of safetensors, not in that of torch.save"
        )
    if path.suffix == ".safetensors" and head.startswith((b"PK", b"\x80")):
        return "it is in the format of torch.save, not in that of safetensors"
    return None


class Uninitialised(TorchFunctionMode):
    """Leaves out random initial values: for tensors without memory torch would first import its
    decompositions, which takes seconds.
    """

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **kwargs)


def build_strictly(make: Callable[[], Net], state: dict[str, torch.Tensor], source: Path | str) -> Net:
    """A network with these weights. Names and shapes are compared before memory is asked for,
    so that no setting can ask for too much.
    """
    check_architecture(make, state, source)
    net = make()
    net.load_state_dict(state)
    return net


def check_architecture(make: Callable[[], nn.Module], state: dict[str, torch.Tensor], source: Path | str) -> None:
    """Refuse weights whose names or shapes are not those of the network that make() builds, without its memory."""
    with torch.device("meta"), Uninitialised():
        check_shapes(make().state_dict(), state, source)


def load_strictly(net: nn.Module, state: dict[str, torch.Tensor], source: Path | str) -> None:
    """Load weights; any missing, surplus or misshapen one is refused, naming the first."""
    check_shapes(net.state_dict(), state, source)
    net.load_state_dict(state)


def check_shapes(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], source: Path | str) -> None:
    wrong = [
        f"{key} is {tuple(state[key].shape)} there, {tuple(own[key].shape)} here"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong += [f"{key} is missing" for key in own if key not in state] + [
        f"{key} is unknown" for key in state if key not in own
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more differences)" if wrong[1:] else ""
        raise UserError(f"{source} holds weights of another architecture: {wrong[0]}{more}")

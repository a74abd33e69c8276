"""State dicts: read from a file, and loaded with every key checked."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.errors import UserError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in float32: shipped weights are fp16, in which a CPU is slow."""
    if not path.exists():
        raise UserError(f"{path} is missing; only safetensors weights are opened")
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as problem:
        raise UserError(f"{path} is damaged ({problem})") from problem


def load_strictly(net: nn.Module, state: dict[str, torch.Tensor], source: Path | str) -> None:
    """Load weights; any missing, surplus or misshapen one is refused, naming the first."""
    own = net.state_dict()
    wrong = [f"{key} is {tuple(state[key].shape)} there, {tuple(own[key].shape)} here" for key in own if key in state and state[key].shape != own[key].shape]
    wrong += [f"{key} is missing" for key in own if key not in state] + [f"{key} is unknown" for key in state if key not in own]
    if wrong:
        more = f" (and {len(wrong) - 1} more differences)" if wrong[1:] else ""
        raise UserError(f"{source} holds weights of another architecture: {wrong[0]}{more}")
    net.load_state_dict(state)

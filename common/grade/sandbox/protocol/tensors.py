"""Tensors as bytes, and the bytes of a message."""

import torch
from torch import Tensor

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
NOT_IN_NUMPY = {
    dtype for name, dtype in DTYPES.items() if "float8" in name or name in ("bfloat16", "float4_e2m1fn_x2")
}


class Out:
    """A message in the making."""

    def __init__(self) -> None:
        self.buffers: list[bytes] = []

    def add(self, data: bytes) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def raw(tensor: Tensor) -> bytes:
    """The numbers of a tensor as bytes, row by row."""
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg() or not plain.is_cpu:
        plain = plain.resolve_conj().resolve_neg().cpu()
    if plain.dtype in NOT_IN_NUMPY:
        plain = plain.reshape(-1).clone().view(torch.uint8)
    return plain.numpy().tobytes()


def lay_out(tensor: Tensor, strides: list[int], offset: int, room: int) -> Tensor:
    """The same numbers, lying in memory as described."""
    memory = torch.zeros(room, dtype=tensor.dtype)
    view = memory.as_strided(tensor.shape, strides, offset)
    first = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    view[first] = tensor[first]
    return view


def write(tensor: Tensor, value: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
    """Give a shared tensor its new numbers, and its new gradient."""
    with torch.no_grad():
        if tensor.shape == value.shape and tensor.dtype == value.dtype and 0 not in tensor.stride():
            if raw(tensor) != raw(value):
                tensor.copy_(value)
        else:
            tensor.data = value
    if tensor.is_leaf:
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        tensor.grad = grad

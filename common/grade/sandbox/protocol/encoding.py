"""Values as JSON, with the bytes of tensors beside it."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.grade.sandbox.protocol.errors import readable
from common.grade.sandbox.protocol.gradients import Graph
from common.grade.sandbox.protocol.tensors import Out, raw


class MessageWriter(Graph):
    """Turns values into messages."""

    def encode(self, value: Any, out: Out) -> Any:
        """A value as JSON, with the bytes of tensors in `out`."""
        if value is None or isinstance(value, bool | str):
            return value if not isinstance(value, str) else str(value)
        if isinstance(value, np.generic) and not isinstance(value, float | complex):
            return ["array", *self.array(np.asarray(value), out), True]
        if isinstance(value, int):
            return int(value) if abs(int(value)) < 2**63 else ["int", hex(value)]
        if isinstance(value, float):
            return float(value)
        if (key := self.keys.get(id(value))) and self.imported(key) is value:
            return ["mine", key]
        if isinstance(value, Tensor):
            return self.encode_tensor(value, out)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [self.encode(item, out) for item in value]
            return ["record", type(value).__name__, list(value._fields), items]
        if isinstance(value, torch.Size | tuple):
            return ["size" if isinstance(value, torch.Size) else "tuple", [self.encode(item, out) for item in value]]
        if isinstance(value, list):
            key = self.export(value) if self.judge else None
            return ["list", key, [self.encode(item, out) for item in value]]
        if isinstance(value, dict):
            key = self.export(value) if self.judge else None
            return ["dict", key, [[self.encode(k, out), self.encode(v, out)] for k, v in value.items()]]
        return self.encode_object(value, out)

    def encode_object(self, value: Any, out: Out) -> Any:
        """A value of a rarer kind, or an object that stays here."""
        if isinstance(value, complex):
            return ["complex", float(value.real), float(value.imag)]
        if isinstance(value, bytes | bytearray):
            return ["bytes", out.add(bytes(value))]
        if isinstance(value, set | frozenset):
            return ["set", [self.encode(item, out) for item in value]]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return ["array", *self.array(value, out), False]
        if isinstance(value, torch.Generator):
            key = self.export(value) if self.judge else None
            state = bytes(value.get_state().numpy())
            if key:
                self.seen[key], self.watched[key] = state, value
            return ["generator", key, out.add(state)]
        if isinstance(value, BaseException):
            return ["exception", type(value).__name__, readable(value)]
        if isinstance(value, nn.Module) and self.judge:
            return self.encode_network(value, out)
        if isinstance(value, torch.optim.Optimizer) and self.judge:
            groups = [dict(group) for group in value.param_groups]

            def zero(set_to_none: bool = True) -> None:
                value.zero_grad(set_to_none=set_to_none)

            return ["optimizer", self.encode(groups, out), self.function(value.step, out), self.function(zero, out)]
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value):
            names = [field.name for field in dataclasses.fields(value)]
            items = [self.encode(getattr(value, name), out) for name in names]
            return ["record", type(value).__name__, names, items]
        if isinstance(value, type):
            fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", ())
            return ["record_type", value.__name__, [str(field) for field in fields]] if fields else ["opaque", "type"]
        if hasattr(value, "__enter__") and hasattr(value, "__exit__"):

            def leave(problem: BaseException | None) -> bool:
                return bool(value.__exit__(type(problem) if problem else None, problem, None))

            return ["context", self.function(value.__enter__, out), self.function(leave, out)]
        if self.judge and isinstance(value, partial) and value.func is torch.randn:
            settings = {name: self.encode(each, out) for name, each in value.keywords.items()}
            return ["draws", self.encode(value.args, out), settings]
        if callable(value):
            return self.function(value, out)
        if hasattr(value, "__next__"):

            def advance() -> tuple:
                for item in value:
                    return True, item
                return False, None

            return ["stream", type(value).__name__, self.function(advance, out)]
        if hasattr(value, "__iter__") and self.judge:
            return ["source", self.function(lambda: iter(value), out)]
        if self.judge:
            raise TypeError(f"a {type(value).__name__} cannot be handed to a submission")
        return ["opaque", type(value).__name__]

    def function(self, function: Callable, out: Out) -> list:
        parameters = None
        if not self.judge:
            try:
                parameters = [str(name) for name in inspect.signature(function).parameters]
            except (ValueError, TypeError):
                parameters = []
        name = getattr(function, "__name__", type(function).__name__)
        return ["function", self.export(function), str(name)[:100], parameters]

    def encode_network(self, network: nn.Module, out: Out) -> list:
        key = self.export(network)

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            return network(*args, **kwargs)

        def train(mode: bool = True) -> None:
            network.train(mode)

        parts = [[name, self.encode(each, out)] for name, each in network.named_parameters()]
        buffers = [[name, self.encode(each, out)] for name, each in network.named_buffers()]
        return [
            "network",
            key,
            type(network).__name__,
            network.training,
            parts,
            buffers,
            self.function(evaluate, out),
            self.function(train, out),
        ]

    @staticmethod
    def array(value: np.ndarray, out: Out) -> tuple:
        plain = np.ascontiguousarray(value)
        return plain.dtype.newbyteorder("=").str, list(value.shape), out.add(plain.tobytes())

    def encode_tensor(self, tensor: Tensor, out: Out) -> list:
        if tensor.layout != torch.strided or tensor.is_quantized:
            return ["opaque", str(tensor.layout)]
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError("a tensor within torch.func.vmap or torch.func.grad cannot leave it here")
        if tensor.grad_fn is not None:
            new = self.export(tensor)
            self.keys.pop(id(tensor), None)  # so that it is sent under another key the next time
            return self.encode_value(tensor, out, self.sources(tensor), new)
        shared = self.judge or tensor.requires_grad
        key = self.export(tensor) if shared else None
        if key and self.judge:
            self.seen[key], self.watched[key] = self.state(tensor), tensor
        encoded = self.encode_value(tensor, out, None, key)
        if tensor.grad is not None and self.judge:
            encoded[1]["own_grad"] = self.encode_value(tensor.grad, out)
        return encoded

    def encode_value(self, tensor: Tensor, out: Out, sources: list[str] | None = None, key: str | None = None) -> list:
        about = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "at": out.add(raw(tensor)),
            "key": key,
            "requires_grad": tensor.requires_grad,
            "sources": sources,
        }
        if self.judge:  # how it lies in memory
            about |= {"parameter": isinstance(tensor, nn.Parameter), "place": tensor.untyped_storage().data_ptr()}
            room = tensor.untyped_storage().nbytes() // tensor.element_size()
            if not tensor.is_contiguous() or (room != tensor.numel() and room < 2**20):
                about["layout"] = [list(tensor.stride()), tensor.storage_offset(), room]
        return ["tensor", about]

    def content(self, tensor: Tensor, out: Out) -> tuple:
        grad = tensor.grad if tensor.is_leaf else None
        return (
            self.encode_value(tensor, out),
            tensor.requires_grad,
            None if grad is None else self.encode_value(grad, out),
        )

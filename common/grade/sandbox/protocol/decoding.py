"""Values from JSON and the bytes of tensors. Nothing is executed or unpickled."""

import math
from collections import namedtuple
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.grade.sandbox.protocol.errors import TEXT, Garbled, raised, type_name
from common.grade.sandbox.protocol.gradients import Graph
from common.grade.sandbox.protocol.proxies import Context, Network, Optimizer, Proxy, Source, Stream
from common.grade.sandbox.protocol.registry import outline
from common.grade.sandbox.protocol.tensors import DTYPES, lay_out, write


class MessageReader(Graph):
    """Turns messages into values."""

    def decode(self, value: Any, buffers: list) -> Any:
        """The value that was encoded. Raises Garbled for anything else."""
        if not isinstance(value, list):
            if value is None or isinstance(value, bool | int | float | str):
                return value
            raise Garbled("a value is not understood")
        try:
            return getattr(self, f"decode_{value[0]}")(buffers, *value[1:])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as problem:
            raise Garbled(f"a value is not understood ({type(problem).__name__}: {problem})") from problem

    def decode_int(self, buffers: list, text: str) -> int:
        return int(text, 16)

    def decode_mine(self, buffers: list, key: str) -> Any:
        return self.exported(key)

    def decode_tuple(self, buffers: list, items: list) -> tuple:
        return tuple(self.decode(item, buffers) for item in items)

    def decode_size(self, buffers: list, items: list) -> torch.Size:
        return torch.Size(self.decode_tuple(buffers, items))

    def decode_list(self, buffers: list, key: str | None, items: list) -> list:
        new = [self.decode(item, buffers) for item in items]
        if key and not self.judge:
            old = self.imports.get(key)
            if isinstance(old, list):
                old[:] = new
                new = old
            self.remember(key, new, outline(new))
        return new

    def decode_dict(self, buffers: list, key: str | None, items: list) -> dict:
        new = {self.decode(k, buffers): self.decode(v, buffers) for k, v in items}
        if key and not self.judge:
            old = self.imports.get(key)
            if isinstance(old, dict):
                old.clear()
                old.update(new)
                new = old
            self.remember(key, new, outline(new))
        return new

    def decode_record(self, buffers: list, name: str, fields: list, items: list) -> Any:
        return self.decode_record_type(buffers, name, fields)(*[self.decode(item, buffers) for item in items])

    def decode_record_type(self, buffers: list, name: str, fields: list) -> Any:
        known = self.records.get(name)
        if known is None or list(getattr(known, "_fields", fields)) != fields:
            make: Any = namedtuple  # its fields are data
            known = make(type_name(name), [str(field) for field in fields])
            self.records.setdefault(name, known)
        return known

    def decode_complex(self, buffers: list, real: float, imaginary: float) -> complex:
        return complex(real, imaginary)

    def decode_bytes(self, buffers: list, at: int) -> bytes:
        return bytes(buffers[at])

    def decode_set(self, buffers: list, items: list) -> set:
        return {self.decode(item, buffers) for item in items}

    def decode_dtype(self, buffers: list, name: str) -> torch.dtype:
        return DTYPES[name]

    def decode_array(self, buffers: list, dtype: str, shape: list, at: int, scalar: bool) -> Any:
        kind = np.dtype(str(dtype))
        if kind.kind not in "biufc":
            raise Garbled("an array of objects")
        array = np.frombuffer(buffers[at], kind).reshape(shape)
        return array[()] if scalar else array

    def decode_generator(self, buffers: list, key: str | None, at: int) -> torch.Generator:
        generator = self.imports.get(key) if key else None
        if generator is None:
            generator = torch.Generator()
        generator.set_state(torch.frombuffer(buffers[at], dtype=torch.uint8).clone())
        if key and not self.judge:
            self.remember(key, generator, bytes(buffers[at]))
        return generator

    def decode_exception(self, buffers: list, name: str, text: str) -> BaseException:
        return raised(str(name)[:80], str(text)[:TEXT], [], None)

    def decode_function(self, buffers: list, key: str, name: str, parameters: list | None) -> Proxy:
        if not isinstance(old := self.imported(key), Proxy):
            old = Proxy(self, str(key), str(name), None if parameters is None else [str(each) for each in parameters])
            self.hold(old, key)
        return old

    def decode_draws(self, buffers: list, args: list, names: dict) -> partial:
        """torch.randn with these arguments, which needs no question to the other side for each draw."""
        if self.judge:
            raise Garbled("a function of torch")
        kwargs = {name: self.decode(value, buffers) for name, value in names.items()}
        return partial(torch.randn, *self.decode(args, buffers), **kwargs)

    def decode_network(
        self, buffers: list, key: str, name: str, training: bool, parts: list, more: list, forward: list, train: list
    ) -> Network:
        network = self.imports.get(key)
        if network is None:
            kind = type(type_name(name), (Network,), {})
            network = kind(self, self.decode(forward, buffers), self.decode(train, buffers), training)
            self.imports[key], self.keys[id(network)] = network, key
        for entries, register in ((parts, "register_parameter"), (more, "register_buffer")):
            for path, value in entries:
                *folders, last = path.split(".")
                place = network
                for folder in folders:
                    if folder not in place._modules:
                        place.add_module(folder, Network(self, None, None, training))
                    place = place._modules[folder]
                tensor = self.decode(value, buffers)
                if getattr(place, last, None) is not tensor:
                    getattr(place, register)(last, tensor)
        self.seen[key], self.watched[key] = dict(network.named_parameters()), network
        return network

    def decode_optimizer(self, buffers: list, groups: list, step: list, zero: list) -> Optimizer:
        return Optimizer(self.decode(groups, buffers), self.decode(step, buffers), self.decode(zero, buffers))

    def decode_context(self, buffers: list, enter: list, leave: list) -> Context:
        return Context(self.decode(enter, buffers), self.decode(leave, buffers))

    def decode_stream(self, buffers: list, name: str, advance: list) -> Stream:
        return type(type_name(name), (Stream,), {})(self.decode(advance, buffers))

    def decode_source(self, buffers: list, start: list) -> Source:
        return Source(self.decode(start, buffers))

    def decode_opaque(self, buffers: list, name: str) -> Any:
        return type(type_name(name), (), {})()

    def decode_tensor(self, buffers: list, about: dict) -> Tensor:
        dtype, shape, data = DTYPES[about["dtype"]], about["shape"], buffers[about["at"]]
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
            raise Garbled("a tensor's bytes do not fit its shape")
        if math.prod(shape):
            tensor = torch.frombuffer(data, dtype=dtype).view(shape)
        else:
            tensor = torch.empty(shape, dtype=dtype)
        key, sources = about["key"], about["sources"]
        if "layout" in about and not self.judge:
            tensor = lay_out(tensor, *about["layout"])
        if sources is not None:
            return self.gate(tensor, key, sources)
        if key is None:
            return tensor
        if (old := self.imported(key)) is not None:
            if self.judge:  # a tensor of the guest that the grader has already
                write(old, tensor, about["requires_grad"], old.grad)
                return old
            grad = self.decode(about.get("own_grad"), buffers)
            write(old, tensor, about["requires_grad"], grad)
            self.seen[key] = self.state(old)
            return old
        if about.get("parameter") and not self.judge:
            tensor = nn.Parameter(tensor, about["requires_grad"])
        elif about["requires_grad"]:
            tensor.requires_grad_()
        if grad := about.get("own_grad"):
            tensor.grad = self.decode(grad, buffers)
        self.hold(tensor, key)
        if not self.judge:
            self.seen[key], self.watched[key] = self.state(tensor), self.imports[key]
            self.seen[key, "place"] = about["place"]
        return tensor

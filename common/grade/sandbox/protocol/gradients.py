"""Gradients through both processes: each keeps its part of the autograd graph, and `Gate` is where the parts meet."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.grade.sandbox.protocol.errors import Garbled
from common.grade.sandbox.protocol.registry import Registry
from common.grade.sandbox.protocol.tensors import is_tensor


class Gate(torch.autograd.Function):
    """A tensor of the other process in the graph of this one.

    leaf     the numbers; here a gradient stops that the other process asks for
    sources  the tensors of this process that the tensor was computed from, over there
    """

    @staticmethod
    def forward(ctx: Any, token: "Token", leaf: Tensor, *sources: Tensor) -> Tensor:
        ctx.token = token
        return leaf.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        token = ctx.token
        if token.peer.serving:
            return None, gradient, *(None for _ in token.sources)
        keep = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
        return None, None, *token.peer.ask_gradients(token.key, gradient, token.sources, keep)


class Token:
    """What a Gate knows; it lives as long as the Gate's place in the graph."""

    def __init__(self, peer: Any, key: str, leaf: Tensor, sources: list[str]) -> None:
        self.peer, self.key, self.leaf, self.sources = peer, key, leaf, sources


class Call:
    """A call within torch.func, with what its gradient needs. rows: the calls that torch.func.vmap made of it."""

    args: list
    result: Tensor
    rows: list["Call"]


class Through(torch.autograd.Function):
    """A call of the other process within torch.func.grad or torch.func.vmap, whose tensors have no numbers to send."""

    @staticmethod
    def forward(call: Call, function: Callable, *args: Any) -> Tensor:
        with torch.enable_grad():
            call.args = [a.detach().requires_grad_(a.is_floating_point()) if is_tensor(a) else a for a in args]
            call.result = function(*call.args)
        return call.result.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.call, ctx.learns = inputs[0], [is_tensor(a) and a.is_floating_point() for a in inputs[2:]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        found = iter(Back.apply(ctx.call, gradient))
        return None, None, *(next(found) if learns else None for learns in ctx.learns)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: Call, function: Callable, *args: Any) -> tuple[Tensor, int]:
        n = info.batch_size
        each = [[a] * n if dim is None else a.unbind(dim) for a, dim in zip(args, in_dims[2:], strict=True)]
        call.rows = [Call() for _ in range(n)]
        rows = zip(call.rows, *each, strict=True)
        return torch.stack([Through.apply(row, function, *values) for row, *values in rows]), 0


class Back(torch.autograd.Function):
    """The gradients of a call within torch.func with respect to its arguments."""

    @staticmethod
    def forward(call: Call, gradient: Tensor) -> tuple:
        inputs = [a for a in call.args if is_tensor(a) and a.requires_grad]
        with torch.enable_grad():
            found = torch.autograd.grad(
                (call.result * gradient).sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: Call, gradient: Tensor) -> tuple[tuple, tuple]:
        rows = zip(call.rows, gradient.unbind(in_dims[1]), strict=True)
        found = [torch.stack(each) for each in zip(*(Back.apply(*row) for row in rows), strict=True)]
        return tuple(found), (0,) * len(found)


class Graph(Registry):
    """The part of the autograd graph that is here."""

    def leaf(self, key: str) -> Tensor:
        """The tensor at which a gradient that the other side asks for stops."""
        if token := self.tokens.get(key):
            return token.leaf
        if key in self.exports:
            return self.exports[key]
        tensor = self.imports[key]() if key in self.imports else None
        if tensor is None:
            raise Garbled("an unknown tensor")
        return tensor

    def sources(self, tensor: Tensor) -> list[str]:
        """Keys of the tensors known to both sides that a tensor was computed from, over here."""
        found: dict[str, None] = {}
        nodes, visited = [tensor.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if isinstance(token := getattr(node, "token", None), Token):
                found[token.key] = None
            elif (variable := getattr(node, "variable", None)) is not None:
                if key := self.keys.get(id(variable)):
                    found[key] = None
            else:
                nodes += [each for each, _ in node.next_functions]
        return list(found)

    def gate(self, tensor: Tensor, key: str, sources: list[str]) -> Tensor:
        """A tensor that the other side computed from tensors that both know."""
        known = {}
        for source in sources:
            here = self.exports.get(source) if source in self.exports else self.imported(source)
            if isinstance(here, Tensor) and here.requires_grad:
                known[source] = here
        token = Token(self, key, tensor.requires_grad_(), list(known))
        with torch.enable_grad():
            result = Gate.apply(token, token.leaf, *known.values())
        if key:
            self.tokens[key] = token
            self.ends[key] = self.watch(token, key, True)
            self.imports[key], self.keys[id(result)] = self.watch(result, key, False), key
        return result

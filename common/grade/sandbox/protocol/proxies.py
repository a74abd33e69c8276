"""Objects of the other process, as they are here: their calls travel to it."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from common.grade.sandbox.protocol.gradients import Call, Through
from common.grade.sandbox.protocol.tensors import is_tensor


class Proxy:
    """A function of the other process."""

    _peer: Any
    _key: str

    def __init__(self, peer: Any, key: str, name: str, parameters: list[str] | None = None) -> None:
        self.__dict__.update(_peer=peer, _key=key, __name__=name)
        if parameters is not None:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            self.__dict__["__signature__"] = inspect.Signature(
                [inspect.Parameter(each, kind) for each in dict.fromkeys(parameters) if each.isidentifier()]
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and any(is_tensor(a) and torch._C._functorch.is_functorch_wrapped_tensor(a) for a in args):
            return Through.apply(Call(), self, *args)
        return self._peer.call(self._key, args, kwargs)


class Network(nn.Module):
    """A network of the grader: its parameters are here, its forward pass is there."""

    def __init__(self, peer: Any, forward: Proxy | None, train: Proxy | None, training: bool) -> None:
        super().__init__()
        self.__dict__.update(evaluate=forward, tell=train)
        self.training = training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        evaluate = self.__dict__["evaluate"]
        if evaluate is None:
            raise RuntimeError("only the whole network can be evaluated here, not a part of it")
        return evaluate(*args, **kwargs)

    def train(self, mode: bool = True) -> "Network":
        if (tell := self.__dict__.get("tell")) is not None:
            tell(mode)
        return super().train(mode)

    def __deepcopy__(self, memo: dict) -> None:
        raise RuntimeError("a network that was passed to you cannot be copied")


class Optimizer(torch.optim.Optimizer):
    """An optimizer of the grader."""

    def __init__(self, groups: list[dict], step: Proxy, zero: Proxy) -> None:  # without that of torch's class
        self.param_groups, self.state, self.defaults = groups, defaultdict(dict), {}
        self._step, self._zero = step, zero

    def step(self, closure: Callable | None = None) -> Any:  # type: ignore[override]
        return self._step() if closure is None else self._step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._zero(set_to_none)


class Context:
    """A context manager of the other process."""

    def __init__(self, enter: Proxy, leave: Proxy) -> None:
        self._enter, self._leave = enter, leave

    def __enter__(self) -> Any:
        return self._enter()

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: object) -> bool:
        return bool(self._leave(problem))


class Stream:
    """An iterator of the other process."""

    def __init__(self, advance: Proxy) -> None:
        self._advance = advance

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        more, item = self._advance()
        if not more:
            raise StopIteration
        return item


class Source:
    """Something of the other process that can be iterated over more than once."""

    def __init__(self, start: Proxy) -> None:
        self._start = start

    def __iter__(self) -> Iterator:
        return self._start()

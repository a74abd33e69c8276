"""Two processes that call each other's functions: the grader, which holds the checks, and the guest, which holds a
submission. Both ends run this code.

Values   numbers, texts, tensors, arrays, tuples, lists, dicts and named tuples are copied.
Objects  functions, networks, optimizers, iterators and context managers stay where they are; the other side gets a
         proxy whose calls travel back.
Shared   a tensor, list, dict or random generator of the grader that the guest changes in place is changed in the grader,
         too, whenever the two talk, and a tensor that the grader changes is changed in the guest.
Graphs   each process keeps its part of the autograd graph. A tensor that crosses becomes the output of `Gate` on the
         other side, whose backward asks the process that the tensor came from for the vector-Jacobian product.

Nothing that arrives is executed or unpickled: a message is JSON, and tensors are raw bytes with a dtype and a shape.
"""

import builtins
import contextlib
import dataclasses
import inspect
import math
import traceback
import weakref
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.grade.sandbox.wire import Channel, ChannelError

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
NOT_IN_NUMPY = {
    dtype for name, dtype in DTYPES.items() if "float8" in name or name in ("bfloat16", "float4_e2m1fn_x2")
}
RNG = "rng"  # the key of torch's default generator
TEXT = 2000  # longest text of an error that is sent


class Raised:
    """What the other process raised: mixed into an exception of the same built-in type."""

    text: str
    type_name: str
    places: list[str]  # lines of the submission, outermost first
    number: int | None  # of the callback's exception that it passes on

    def __str__(self) -> str:
        return self.text


def raised(name: str, text: str, places: list[str], number: int | None) -> BaseException:
    """An exception like that of the other process."""
    kind = type_name(name) if type_name(name) != "object" else "Exception"
    base = getattr(builtins, kind, None)
    if not (isinstance(base, type) and issubclass(base, BaseException)) or issubclass(base, UnicodeError):
        base = ValueError if kind.startswith("Unicode") else RuntimeError
    if issubclass(base, BaseExceptionGroup):
        base = RuntimeError
    problem = type(kind, (Raised, base), {})()
    problem.text, problem.type_name, problem.places, problem.number = text, kind, places, number
    return problem


class Garbled(ChannelError):
    def __init__(self, text: str) -> None:
        super().__init__("garbled", text)


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


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class Token:
    """What a Gate knows; it lives as long as the Gate's place in the graph."""

    def __init__(self, peer: "Peer", key: str, leaf: Tensor, sources: list[str]) -> None:
        self.peer, self.key, self.leaf, self.sources = peer, key, leaf, sources


class Proxy:
    """A function of the other process."""

    _peer: "Peer"
    _key: str

    def __init__(self, peer: "Peer", key: str, name: str, parameters: list[str] | None = None) -> None:
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

    def __init__(self, peer: "Peer", forward: Proxy | None, train: Proxy | None, training: bool) -> None:
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


def raw(tensor: Tensor) -> bytes:
    """The numbers of a tensor as bytes, row by row."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    if plain.dtype in NOT_IN_NUMPY:
        plain = plain.reshape(-1).clone().view(torch.uint8)
    return plain.numpy().tobytes()


class Out:
    """A message in the making."""

    def __init__(self) -> None:
        self.buffers: list[bytes] = []

    def add(self, data: bytes) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1


class Peer:
    """One of the two processes. judge: whether it is the one whose tensors and lists are shared."""

    def __init__(self, channel: Channel, judge: bool) -> None:
        self.channel, self.judge, self.serving = channel, judge, False
        self.letter = "j" if judge else "g"
        self.records: dict[str, type] = {}  # named tuples and dataclasses by name
        self.places_of: Callable[[BaseException], list[str]] = lambda problem: []
        self.commands: dict[str, Callable[[dict, list], Any]] = {}  # more that the other side may ask for
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing is shared. Both processes do this at the same time."""
        self.count = 0
        self.exports: dict[str, Any] = {}  # my objects that the other side knows
        self.keys: dict[int, str] = {}  # id of an object that both know: its key
        self.imports: dict[str, Any] = {}  # the other side's objects, as they are here (weak for tensors)
        self.tokens: weakref.WeakValueDictionary[str, Token] = weakref.WeakValueDictionary()
        self.watched: dict[str, Any] = {}  # shared objects that may change: keys of exports or imports
        self.seen: dict[Any, Any] = {}  # the state of a shared object when the two last talked
        self.ends: dict[str, weakref.ref] = {}  # what notes the end of a token
        self.released: list[str] = []
        self.held: list[list] = []  # shared things and arguments while calls go on
        self.problems: list[BaseException] = []  # that callbacks raised
        self.broken: BaseException | None = None  # the first of these that says what is wrong with the submission

    # ------------------------------------------------------------------------------------------------- conversation

    def ask(self, message: dict, out: Out) -> Any:
        """Send a request and wait for its answer, answering what the other side asks in the meantime."""
        self.post(message, out)
        while True:
            answer, buffers = self.channel.receive()
            if "op" in answer:
                self.serve(answer, buffers)
                continue
            self.take_changes(answer, buffers)
            if "error" in answer:
                raise self.problem(answer["error"])
            return self.decode(answer.get("value"), buffers)

    def post(self, message: dict, out: Out) -> None:
        changes = self.changes(out)
        released, self.released = self.released, []
        self.channel.send(
            message | {"changes": changes, "released": released, "grad": torch.is_grad_enabled()}, out.buffers
        )

    def serve(self, message: dict, buffers: list) -> None:
        """Do what the other side asks for, and answer."""
        out, depth = Out(), len(self.held)
        # kept until the answer is sent, which tells what has become of them
        self.held.append([each() for each in self.watched.values() if isinstance(each, weakref.ref)])
        before = torch.is_grad_enabled()
        try:
            self.take_changes(message, buffers)
            torch.set_grad_enabled(bool(message.get("grad", True)))
            result = self.perform(message, buffers)  # kept until the answer is sent, or it would be released before
            answer = {"value": self.encode(result, out)}
        except ChannelError:
            raise
        except BaseException as problem:
            answer, out = {"error": self.describe(problem)}, Out()
        self.post(answer, out)
        del self.held[depth:]
        if self.judge:
            torch.set_grad_enabled(before)

    def perform(self, message: dict, buffers: list) -> Any:
        op = message["op"]
        if op == "call":
            args = self.decode(message["args"], buffers)
            kwargs = {name: self.decode(value, buffers) for name, value in message["kwargs"].items()}
            self.held.append([args, kwargs])
            return self.exported(message["target"])(*args, **kwargs)
        if op == "gradient":
            return self.gradients(message, buffers)
        if op in self.commands:
            return self.commands[op](message, buffers)
        raise Garbled("an unknown request")

    def call(self, key: str, args: tuple, kwargs: dict) -> Any:
        """Call a function of the other process."""
        out = Out()
        known = len(self.problems)
        names = {name: self.encode(value, out) for name, value in kwargs.items()}
        message = {"op": "call", "target": key, "args": self.encode(args, out), "kwargs": names}
        try:
            return self.ask(message, out)
        finally:  # what a check said to the submission counts, whatever the submission made of it
            if self.judge and self.broken and len(self.problems) > known:
                raise self.broken

    def exported(self, key: object) -> Any:
        if not isinstance(key, str) or key not in self.exports:
            raise Garbled("an unknown object")
        return self.exports[key]

    def describe(self, problem: BaseException) -> dict:
        """An exception as a message."""
        number = getattr(problem, "number", None)
        text = readable(problem)
        if self.judge and not isinstance(problem, Raised):
            self.problems.append(problem)
            number = len(self.problems) - 1
            if isinstance(problem, AssertionError):
                self.broken, text = self.broken or problem, ""  # the sentence is for the verdict, not for the guest
        kind = getattr(problem, "type_name", type(problem).__name__)
        return {"type": str(kind)[:80], "text": text, "places": self.places_of(problem), "number": number}

    def problem(self, error: Any) -> BaseException:
        """The exception that a message describes."""
        try:
            number, places = error["number"], [str(place)[:200] for place in error["places"]][-20:]
            kind, text = str(error["type"])[:80], str(error["text"])[:TEXT]
        except (TypeError, KeyError):
            return Garbled("an error is not understood")
        if self.judge and type(number) is int and 0 <= number < len(self.problems):
            original = self.problems[number]
            original.__dict__["submission_places"] = places
            return original
        return raised(kind, text, places, number)

    # ------------------------------------------------------------------------------------------------------ gradients

    def ask_gradients(self, key: str, gradient: Tensor, wanted: list[str], keep: bool) -> list[Tensor | None]:
        """The vector-Jacobian product of a tensor that came from the other side."""
        if not wanted:
            return []
        out = Out()
        with torch.no_grad():
            message = {"op": "gradient", "of": key, "wanted": wanted, "keep": keep}
            return self.ask(message | {"vector": self.encode_value(gradient, out)}, out)

    def gradients(self, message: dict, buffers: list) -> list[Tensor | None]:
        output, vector = self.exported(message["of"]), self.decode(message["vector"], buffers)
        inputs = [self.leaf(key) for key in message["wanted"]]
        if not (isinstance(output, Tensor) and isinstance(vector, Tensor) and vector.shape == output.shape):
            raise Garbled("a gradient of something else")
        self.serving = True
        try:
            with torch.enable_grad():
                # the sum, because torch.autograd.grad with grad_outputs would import SymPy first
                found = torch.autograd.grad(
                    (output * vector).sum(),
                    inputs,
                    retain_graph=bool(message["keep"]) or not self.judge,  # the grader may ask again
                    allow_unused=True,
                )
        finally:
            self.serving = False
        return [None if each is None else each.detach() for each in found]

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

    # --------------------------------------------------------------------------------------------- what has changed

    def changes(self, out: Out) -> list:
        """What has happened to shared things since the two last talked."""
        found = []
        for key, each in [(RNG, torch.default_generator), *self.watched.items()]:
            if isinstance(each, torch.Generator) and (state := bytes(each.get_state().numpy())) != self.seen.get(key):
                self.seen[key] = state
                found.append(["generator", key, out.add(state)])
        if self.judge:
            for key, each in self.watched.items():
                if isinstance(each, Tensor) and (now := self.state(each)) != self.seen[key]:
                    self.seen[key] = now
                    found.append(["tensor", key, *self.content(each, out)])
            return found
        places: dict[int, str] = {}
        for key, each in list(self.watched.items()):
            if isinstance(each, weakref.ref):
                if (tensor := each()) is not None:
                    found += self.tensor_change(key, tensor, places, out)
            elif isinstance(each, Network):
                found += self.new_parameters(key, each, out)
            elif isinstance(each, list | dict) and (now := outline(each)) != self.seen[key]:
                self.seen[key] = now
                content = each if isinstance(each, list) else list(each.items())
                found.append(["container", key, [self.encode(item, out) for item in content]])
        return found

    def tensor_change(self, key: str, tensor: Tensor, places: dict[int, str], out: Out) -> list:
        """How the guest has changed a tensor of the grader."""
        first = places.setdefault(tensor.data_ptr(), key) if tensor.numel() else key
        if first != key and self.seen.get((first, "place")) != self.seen.get((key, "place")):
            self.seen[key, "place"] = self.seen[first, "place"]
            return [["alias", key, first]]  # two tensors that now lie in the same memory
        now = self.state(tensor)
        if now == self.seen[key]:
            return []
        self.seen[key] = now
        if tensor.grad_fn is not None:
            return [["graph", key, self.encode_tensor(tensor.view_as(tensor), out)]]
        return [["tensor", key, *self.content(tensor, out)]]

    def new_parameters(self, key: str, network: Network, out: Out) -> list:
        """Parameters of a network that the guest has replaced by others."""
        found, now = [], dict(network.named_parameters())
        for name, old in self.seen[key].items():
            if (new := now.get(name)) is not None and new is not old:
                found.append(["parameter", key, name, self.encode(new, out)])
                self.seen[key][name] = new
        return found

    def state(self, tensor: Tensor) -> tuple:
        """What tells whether a shared tensor has changed."""
        grad = tensor.grad if tensor.is_leaf else None
        if self.judge:
            return (
                tensor._version,
                tensor.data_ptr(),
                tensor.requires_grad,
                None if grad is None else (id(grad), grad._version),
            )
        return tuple(tensor.shape), raw(tensor), tensor.requires_grad, None if grad is None else raw(grad)

    def content(self, tensor: Tensor, out: Out) -> tuple:
        grad = tensor.grad if tensor.is_leaf else None
        return (
            self.encode_value(tensor, out),
            tensor.requires_grad,
            None if grad is None else self.encode_value(grad, out),
        )

    def take_changes(self, message: dict, buffers: list) -> None:
        try:
            for key in message["released"]:
                if key in self.exports:
                    self.drop(key)
            for change in message["changes"]:
                self.take_change(change[0], change[1], change[2:], buffers)
            if not self.judge or "op" not in message:
                torch.set_grad_enabled(bool(message["grad"]))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise Garbled(f"a change is not understood ({type(problem).__name__}: {problem})") from problem

    def drop(self, key: str) -> None:
        each = self.exports.pop(key)
        self.keys.pop(id(each), None)
        self.seen.pop(key, None)
        self.watched.pop(key, None)

    def take_change(self, kind: str, key: str, rest: list, buffers: list) -> None:
        if kind == "generator":
            owner = torch.default_generator if key == RNG else (self.exports if self.judge else self.imports)[key]
            self.seen[key] = bytes(buffers[rest[0]])
            owner.set_state(torch.frombuffer(buffers[rest[0]], dtype=torch.uint8).clone())
            return
        mine = self.exports[key] if self.judge else self.imported(key)  # None for what is no longer needed here
        if kind == "tensor" and mine is not None:
            self.write(mine, self.decode(rest[0], buffers), rest[1], self.decode(rest[2], buffers))
            self.seen[key] = self.state(mine)
        elif not self.judge:
            return
        elif kind == "alias":
            mine.data = self.exports[rest[0]].data
            self.seen[key] = self.state(mine)
        elif kind == "graph":
            mine.copy_(self.decode(rest[0], buffers))
            self.seen[key] = self.state(mine)
        elif kind == "parameter":
            if rest[0] in dict(mine.named_parameters()):
                path, _, name = rest[0].rpartition(".")
                value = self.decode(rest[1], buffers)
                setattr(mine.get_submodule(path), name, nn.Parameter(value.detach(), value.requires_grad))
        elif kind == "container":
            items = [self.decode(item, buffers) for item in rest[0]]
            if isinstance(mine, list):
                mine[:] = items
            else:
                mine.clear()
                mine.update(items)

    @staticmethod
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

    # ------------------------------------------------------------------------------------------------------- encoding

    def export(self, each: Any, prefix: str = "") -> str:
        """The key under which the other side knows an object of mine."""
        if not (key := self.keys.get(id(each))):
            self.count += 1
            key = f"{self.letter}{prefix}{self.count}"
            self.exports[key], self.keys[id(each)] = each, key
        return key

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

    # ------------------------------------------------------------------------------------------------------- decoding

    def imported(self, key: str) -> Any:
        each = self.imports.get(key)
        return each() if isinstance(each, weakref.ref) else each

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

    def remember(self, key: str, value: Any, state: Any) -> None:
        self.imports[key], self.keys[id(value)], self.seen[key] = value, key, state
        self.watched[key] = value

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
            tensor = torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)
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
                self.write(old, tensor, about["requires_grad"], old.grad)
                return old
            grad = self.decode(about.get("own_grad"), buffers)
            self.write(old, tensor, about["requires_grad"], grad)
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

    def hold(self, each: Any, key: str) -> None:
        """Note a tensor or function of the other side, and note when it is no longer needed here."""
        if key in self.released:
            self.released.remove(key)
        self.imports[key], self.keys[id(each)] = self.watch(each, key, True), key

    def watch(self, each: Any, key: str, release: bool) -> weakref.ref:
        """A weak reference that notes when the object is no longer needed here."""
        imports, keys, identity = self.imports, self.keys, id(each)

        def lost(reference: weakref.ref) -> None:
            if imports is not self.imports:  # all was forgotten since
                return
            if keys.get(identity) == key:
                del keys[identity]
            for table in (imports, self.seen, self.watched):
                table.pop(key, None)
            self.seen.pop((key, "place"), None)
            if release:
                self.ends.pop(key, None)
                self.released.append(key)

        return weakref.ref(each, lost)

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


def lay_out(tensor: Tensor, strides: list[int], offset: int, room: int) -> Tensor:
    """The same numbers, lying in memory as described."""
    memory = torch.zeros(room, dtype=tensor.dtype)
    view = memory.as_strided(tensor.shape, strides, offset)
    first = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    view[first] = tensor[first]
    return view


def outline(value: Any) -> Any:
    """What a list or dict holds, for comparison: plain values, and the identity of everything else."""
    if isinstance(value, dict):
        return [(outline_item(k), outline_item(v)) for k, v in value.items()]
    return [outline_item(item) for item in value]


def outline_item(item: Any) -> Any:
    return repr(item) if item is None or isinstance(item, bool | int | float | str) else id(item)


def type_name(name: object) -> str:
    """A name from a message that is fit to be that of a class."""
    return name if isinstance(name, str) and len(name) < 80 and name.isidentifier() and name.isascii() else "object"


def readable(problem: BaseException) -> str:
    """The text of an exception, whose own code may fail."""
    with contextlib.suppress(BaseException):
        return " ".join(str(problem)[: 4 * TEXT].split())[:TEXT]
    return ""


def frames(problem: BaseException) -> list[tuple[str, int | None]]:
    """(file, line) of each frame that an exception has passed, outermost first."""
    return [(frame.filename, frame.lineno) for frame in traceback.extract_tb(problem.__traceback__)]

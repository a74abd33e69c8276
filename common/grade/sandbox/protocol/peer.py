"""The conversation of the two processes: requests, answers, errors, and gradients."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.grade.sandbox.protocol.changes import Sharing
from common.grade.sandbox.protocol.errors import TEXT, Garbled, Raised, raised, readable
from common.grade.sandbox.protocol.tensors import Out
from common.grade.sandbox.protocol.wire import Channel, ChannelError


class Peer(Sharing):
    """One of the two processes. judge: whether it is the one whose tensors and lists are shared."""

    def __init__(self, channel: Channel, judge: bool) -> None:
        super().__init__(judge)
        self.channel, self.serving = channel, False
        self.places_of: Callable[[BaseException], list[str]] = lambda problem: []
        self.commands: dict[str, Callable[[dict, list], Any]] = {}  # more that the other side may ask for

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
        out, depth, result = Out(), len(self.held), None
        # kept until the answer is sent, which tells what has become of them
        self.held.append([each() for each in self.watched.values() if isinstance(each, weakref.ref)])
        before = torch.is_grad_enabled()
        try:
            self.take_changes(message, buffers)
            torch._C._set_grad_enabled(bool(message.get("grad", True)))
            result = self.perform(message, buffers)  # kept until the answer is sent, or it would be released before
            answer = {"value": self.encode(result, out)}
        except ChannelError:
            raise
        except BaseException as problem:
            answer, out = {"error": self.describe(problem)}, Out()
        self.post(answer, out)
        del self.held[depth:]
        result = None
        if not self.judge and not self.held:
            self.release_unused()
        if self.judge:
            torch._C._set_grad_enabled(before)

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

    # --------------------------------------------------------------------------------------------------------- errors

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

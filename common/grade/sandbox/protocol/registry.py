"""The objects that both processes know, by their keys."""

import sys
import weakref
from typing import Any

from torch import Tensor

from common.grade.sandbox.protocol.errors import Garbled
from common.grade.sandbox.protocol.tensors import raw

RNG = "rng"  # the key of torch's default generator


class Registry:
    """Objects of both processes. judge: whether this is the one whose tensors and lists are shared."""

    def __init__(self, judge: bool) -> None:
        self.judge, self.letter = judge, "j" if judge else "g"
        self.records: dict[str, type] = {}  # named tuples and dataclasses by name
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing is shared. Both processes do this at the same time."""
        self.count = 0
        self.exports: dict[str, Any] = {}  # my objects that the other side knows
        self.keys: dict[int, str] = {}  # id of an object that both know: its key
        self.imports: dict[str, Any] = {}  # the other side's objects, as they are here (weak for tensors)
        self.tokens: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self.watched: dict[str, Any] = {}  # shared objects that may change: keys of exports or imports
        self.seen: dict[Any, Any] = {}  # the state of a shared object when the two last talked
        self.ends: dict[str, weakref.ref] = {}  # what notes the end of a token
        self.released: list[str] = []
        self.held: list[list] = []  # shared things and arguments while calls go on
        self.problems: list[BaseException] = []  # that callbacks raised
        self.broken: BaseException | None = None  # the first of these that says what is wrong with the submission

    def export(self, each: Any, prefix: str = "") -> str:
        """The key under which the other side knows an object of mine."""
        if not (key := self.keys.get(id(each))):
            self.count += 1
            key = f"{self.letter}{prefix}{self.count}"
            self.exports[key], self.keys[id(each)] = each, key
        return key

    def exported(self, key: object) -> Any:
        if not isinstance(key, str) or key not in self.exports:
            raise Garbled("an unknown object")
        return self.exports[key]

    def imported(self, key: str) -> Any:
        each = self.imports.get(key)
        return each() if isinstance(each, weakref.ref) else each

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

    def remember(self, key: str, value: Any, state: Any) -> None:
        if key in self.released:
            self.released.remove(key)
        self.imports[key], self.keys[id(value)], self.seen[key] = value, key, state
        self.watched[key] = value

    def release_unused(self) -> None:
        """Let go of the grader's lists and dicts that nothing else here refers to, which none can change any more."""
        for key in reversed(list(self.watched)):  # a list comes after the lists in it; with it, tensors in it may go
            if isinstance(self.watched.get(key), list | dict) and references(self.watched, key) == ALONE:
                del self.keys[id(self.watched.pop(key))], self.imports[key], self.seen[key]
                self.released.append(key)

    def drop(self, key: str) -> None:
        each = self.exports.pop(key)
        self.keys.pop(id(each), None)
        self.seen.pop(key, None)
        self.watched.pop(key, None)

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


def references(table: dict, key: str) -> int:
    """How many references there are to an object in a table."""
    return sys.getrefcount(table[key])


PROBE: list[dict[str, list]] = [{"": []}]
PROBE.append(dict(PROBE[0]))
ALONE = references(PROBE[0], "")  # of an object that is in two tables, `imports` and `watched`, and nowhere else


def outline(value: Any) -> Any:
    """What a list or dict holds, for comparison: plain values, and the identity of everything else."""
    if isinstance(value, dict):
        return [(outline_item(k), outline_item(v)) for k, v in value.items()]
    return [outline_item(item) for item in value]


def outline_item(item: Any) -> Any:
    return repr(item) if item is None or isinstance(item, bool | int | float | str) else id(item)

"""What either process has changed of the things that they share."""

import weakref

import torch
from torch import Tensor, nn

from common.grade.sandbox.protocol.decoding import MessageReader
from common.grade.sandbox.protocol.encoding import MessageWriter
from common.grade.sandbox.protocol.errors import Garbled
from common.grade.sandbox.protocol.proxies import Network
from common.grade.sandbox.protocol.registry import RNG, outline
from common.grade.sandbox.protocol.tensors import Out, write


class Sharing(MessageWriter, MessageReader):
    """Tells the other process of changes, and makes its changes here."""

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

    def take_changes(self, message: dict, buffers: list) -> None:
        try:
            for key in message["released"]:
                if key in self.exports:
                    self.drop(key)
            for change in message["changes"]:
                self.take_change(change[0], change[1], change[2:], buffers)
            if not self.judge or "op" not in message:
                torch._C._set_grad_enabled(bool(message["grad"]))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise Garbled(f"a change is not understood ({type(problem).__name__}: {problem})") from problem

    def take_change(self, kind: str, key: str, rest: list, buffers: list) -> None:
        if kind == "generator":
            owner = torch.default_generator if key == RNG else (self.exports if self.judge else self.imports)[key]
            self.seen[key] = bytes(buffers[rest[0]])
            owner.set_state(torch.frombuffer(buffers[rest[0]], dtype=torch.uint8).clone())
            return
        mine = self.exports[key] if self.judge else self.imported(key)  # None for what is no longer needed here
        if kind == "tensor" and mine is not None:
            write(mine, self.decode(rest[0], buffers), rest[1], self.decode(rest[2], buffers))
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

"""Messages between two processes: a JSON object and raw bytes, never a pickle.

A frame is two lengths of 4 bytes, those of the JSON text and of all buffers together, then the text, then the buffers.
The text holds the length of each buffer.
"""

import json
import socket
import struct
import time

LIMIT = 256 * 2**20  # largest frame in bytes that is accepted
HEAD = struct.Struct("<II")
PIECE = 2**16  # bytes that are received at a time where fewer are wanted, so that a message needs one system call


class ChannelError(Exception):
    """The other process ended, was too late, or sent something that is no message."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(text or kind)
        self.kind = kind  # "ended", "late" or "garbled"


class Channel:
    """One end of a connection. deadline: the time (time.monotonic) after which receiving gives up, if any."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline: float | None = None
        self.blocking: bool | None = None  # whether the connection is known to wait without a limit
        self.early = bytearray()  # received, and not asked for yet

    def send(self, message: dict, buffers: list | None = None) -> None:
        """Send one message. Raises ChannelError if the other process has ended or does not read."""
        buffers = buffers or []
        text = json.dumps(message | {"sizes": [len(buffer) for buffer in buffers]}).encode()
        frame = b"".join([HEAD.pack(len(text), sum(map(len, buffers))), text, *buffers])
        try:
            self.limit_time()
            self.connection.sendall(frame)
        except TimeoutError:
            raise ChannelError("late") from None
        except OSError:
            raise ChannelError("ended") from None

    def receive(self) -> tuple[dict, list[bytearray]]:
        """The next message and its buffers."""
        length, rest = HEAD.unpack(self.exactly(HEAD.size))
        if length + rest > LIMIT:
            raise ChannelError("garbled", "a message is too long")
        frame = self.exactly(length + rest)
        try:
            message = json.loads(frame[:length].decode())
            sizes = message.pop("sizes")
            fits = all(type(size) is int and size >= 0 for size in sizes) and sum(sizes) == rest
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ChannelError("garbled", "a message is not understood") from None
        if not fits:
            raise ChannelError("garbled", "a message is not understood")
        buffers = []
        for size in sizes:
            buffers.append(frame[length : length + size])
            length += size
        return message, buffers

    def exactly(self, n: int) -> bytearray:
        """The next n bytes."""
        data = self.early
        try:
            while len(data) < n:
                self.limit_time()
                some = self.connection.recv(min(max(n - len(data), PIECE), 2**20))
                if not some:
                    raise ChannelError("ended")
                data += some
        except TimeoutError:
            raise ChannelError("late") from None
        except OSError:
            raise ChannelError("ended") from None
        self.early = data[n:]
        del data[n:]
        return data

    def limit_time(self) -> None:
        if self.deadline is None:
            if not self.blocking:
                self.connection.settimeout(None)
        elif (left := self.deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
        else:
            raise ChannelError("late")
        self.blocking = self.deadline is None

    def close(self) -> None:
        self.connection.close()

"""What the other process raised, and what is wrong with a message."""

import builtins
import contextlib
import traceback

from common.grade.sandbox.protocol.wire import ChannelError

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

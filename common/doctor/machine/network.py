"""The Hugging Face hub: whether it or its mirror answers. No chapter needs it, since each brings data and weights."""

from collections.abc import Iterator

from common.doctor.finding import Finding, fine, note, wrong
from common.errors import UserError
from common.io.hub import MIRROR, PUBLIC, endpoint, offline, shown_endpoint, unanswered


def findings() -> Iterator[Finding]:
    """Whether the hub answers within three seconds."""
    yield hub()


def hub() -> Finding:
    """No answer is worth a note if no mirror is named; a mirror that is named should answer."""
    try:
        address = endpoint()
    except UserError as problem:
        return wrong("hub", str(problem), "export HF_ENDPOINT=https://hf-mirror.com, or unset HF_ENDPOINT")
    if offline():
        return note("hub", "not asked, because HF_HUB_OFFLINE or a variable like it is set")
    reason = unanswered(address)
    if reason is None:
        return fine("hub", f"{shown_endpoint()} answers")
    if address != PUBLIC:
        return wrong("hub", f"the mirror {shown_endpoint()} {reason}", "name another in HF_ENDPOINT, or unset it")
    return note("hub", f"{PUBLIC} {reason}; the course works without it", f"{MIRROR}, such as https://hf-mirror.com")

"""Whether a server can be reached, found out within a few seconds."""

import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from common.errors import explain

REACH_SECONDS = 3  # how long to wait for an answer before the network counts as missing


def reachable(url: str) -> bool:
    """Whether a server answers within REACH_SECONDS, name lookup included (which has no time limit of its own)."""
    return unanswered(url) is None


def unanswered(url: str) -> str | None:
    """Why a server gives no answer: "did not answer within 3 s", "did not answer (Connection refused)"; None if it answers."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
            found.append(None)
        except urllib.error.HTTPError:
            found.append(None)  # an error status is an answer, too
        except (OSError, ValueError) as problem:
            found.append(reason(problem))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)  # returns at once where the server refuses
    said = found[0] if found else f"within {REACH_SECONDS} s"
    return said and f"did not answer {said}{through_proxy(url)}"


def reason(problem: Exception) -> str:
    """'(Connection refused)', '(Name or service not known)', 'within 3 s'"""
    inner = getattr(problem, "reason", problem)
    if isinstance(inner, (TimeoutError, socket.timeout)):
        return f"within {REACH_SECONDS} s"
    if isinstance(inner, ssl.SSLError):
        return f"in a secure connection ({inner.reason or explain(inner)})"
    return f"({explain(inner) if isinstance(inner, Exception) else inner})"


def through_proxy(url: str) -> str:
    """' through the proxy http://proxy:3128' where the environment names one for this address; without its password."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    return f" through the proxy {re.sub(r'//[^/@]*@', '//', proxy)}"

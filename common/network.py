"""Whether there is a network, found out without a hang."""

import threading
import urllib.error
import urllib.request

REACH_SECONDS = 3  # how long to wait for an answer before saying that there is no network


def reachable(url: str) -> bool:
    """Whether a server answers within REACH_SECONDS, name lookup included (which has no time limit of its own)."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answers, if only to refuse
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)  # returns at once where the server refuses
    return answered.is_set()

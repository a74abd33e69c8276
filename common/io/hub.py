"""Access to the Hugging Face hub: its address, its cache, downloads, and the reason where a download fails.

    folder = cached("owner/name", "config.json") or download("owner/name@revision", choose, advice)

HF_ENDPOINT names a mirror, HF_HUB_OFFLINE forbids downloads,
and HF_TOKEN or `hf auth login` gives access to gated and private repositories.
"""

import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common.errors import UserError, explain

if TYPE_CHECKING:  # it takes a second, and no program needs it for --help
    from huggingface_hub import HfApi

PUBLIC = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
ADDRESS = re.compile(r"https?://([^\s/?#@]+@)?(\[[\da-fA-F:]+\]|[^\s/?#:@\[\]]+)(:\d+)?(/[^\s?#]*)?")
MIRROR = "name a mirror in the environment variable HF_ENDPOINT"
REACH_SECONDS = 3  # how long to wait for an answer before the network counts as missing


# --------------------------------------------------------------------------------------------------------- its address


def endpoint(environment: Mapping[str, str] = os.environ) -> str:
    """The hub's address: that of HF_ENDPOINT, with https:// where no scheme is written;
    an empty variable counts as none.
    """
    given = environment.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not given:
        return PUBLIC
    address = given if "://" in given else f"https://{given}"
    if not ADDRESS.fullmatch(address):
        raise UserError(
            f"the environment variable HF_ENDPOINT holds {given!r}, which is no address of a web server; write https://hf-mirror.com, or unset it"
        )
    return address


def shown_endpoint() -> str:
    """The hub's address for messages, without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", endpoint())


def tidy_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Write HF_ENDPOINT as the libraries expect it, before they are imported and read it.
    A wrong one is refused where it is used.
    """
    if "HF_ENDPOINT" in environment:
        with suppress(UserError):
            environment["HF_ENDPOINT"] = endpoint(environment)


def offline() -> bool:
    """Whether an environment variable forbids requests to the hub."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE
    )


def silent() -> str | None:
    """Why the hub gives no answer, as the end of a sentence; None if it answers."""
    if offline():
        name = next((name for name in OFFLINE if os.environ.get(name)), OFFLINE[0])
        return f"the hub was not asked, because {name} is set (unset it to ask)"
    reason = unanswered(endpoint())
    return reason and f"{shown_endpoint()} {reason}"


# ------------------------------------------------------------------------------------------------------ does it answer


def reachable(url: str) -> bool:
    """Whether a server answers within REACH_SECONDS, name lookup included (which has no time limit of its own)."""
    return unanswered(url) is None


def unanswered(url: str) -> str | None:
    """Why a server gives no answer: "did not answer within 3 s",
    "did not answer (Connection refused)"; None if it answers.
    """
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
    """' through the proxy http://proxy:3128' where the environment names one for this
    address; without its password.
    """
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    return f" through the proxy {re.sub(r'//[^/@]*@', '//', proxy)}"


# -------------------------------------------------------------------------------------------------- cache and download


def split_id(name: str, example: str) -> tuple[str, str | None]:
    """'owner/name@revision' -> ("owner/name", "revision"); without one the newest, None."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(f"'{name}' is neither a folder nor a hub id such as {example}") from None
    return repository, revision or None


def cached(name: str, *files: str, example: str = "owner/name") -> Path | None:
    """The folder of a repository in the hub's cache, if any of these files is there; others may be missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = split_id(name, example)
    try:  # with patterns, because without them a copy of less than the whole repository counts as none
        folder = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=list(files))
        )
    except LocalEntryNotFoundError:
        return None
    return folder if any((folder / file).exists() for file in files) else None


def download(
    name: str,
    choose: "Callable[[list[str], Callable[[str], Path]], list[str]]",
    advice: str,
    example: str = "owner/name",
) -> Path:
    """Download into the hub's cache what is missing there; returns the folder.

    choose  (names of all files, a function that fetches one of them) -> names of the files that are needed
    """
    repository, revision = split_id(name, example)
    with asking(f"'{name}' is no local folder and not in the hub's cache", name, advice) as hub:
        files = hub.list_repo_files(repository, revision=revision)
        wanted = choose(files, lambda file: Path(hub.hf_hub_download(repository, file, revision=revision)))
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))


@contextmanager
def asking(what: str, name: str, advice: str) -> "Iterator[HfApi]":
    """A client of the hub; an error within this context becomes a UserError. what: why the hub is needed at all."""
    from huggingface_hub import HfApi

    if reason := silent():
        raise UserError(f"{what}, and {reason}; {advice}")
    try:
        yield HfApi(endpoint=endpoint())
    except UserError:
        raise
    except Exception as problem:  # the hub's own errors, those of its network library, OSError
        raise UserError(
            f"'{name}' could not be downloaded from {shown_endpoint()} ({why(problem, name)}); {advice}"
        ) from problem


def why(problem: BaseException, name: str) -> str:
    """The reason for a failed request, and what would help:
    accept the terms, log in, or correct the name or the revision.
    """
    from huggingface_hub import errors, get_token

    chain = [problem]
    # libraries wrap the hub's errors
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    found = next(
        (error for error in chain if isinstance(error, (errors.HfHubHTTPError, errors.EntryNotFoundError))), None
    )
    page, (repository, _, revision) = f"{shown_endpoint()}/", name.partition("@")
    status = getattr(getattr(found, "response", None), "status_code", None)
    login = "log in with `hf auth login`, or put a token in the environment variable HF_TOKEN"
    if isinstance(found, errors.GatedRepoError):
        then = "use a token of the account that accepted them" if get_token() else login
        kind = "datasets/" if "/datasets/" in str(getattr(found.response, "url", "")) else ""
        return f"access to it is restricted: accept its terms on {page}{kind}{repository}, then {then}"
    if isinstance(found, errors.RepositoryNotFoundError):
        return f"no such repository is visible there: check the name; if it is private, {login}"
    if isinstance(found, errors.RevisionNotFoundError):
        return f"it has no revision '{revision or 'main'}'; name another after the @, or none"
    if status in (401, 403):
        return f"the answer was {status}, no access: {'the token was refused; ' if get_token() else ''}{login}"
    if status == 429:
        return f"the answer was 429, too many requests: wait some minutes, or {login}"
    return f"the answer was {status}, {explain(found)}" if found is not None and status else explain(problem)

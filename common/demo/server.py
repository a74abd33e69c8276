"""Serves the page, to this computer alone unless the network is asked for.

The server answers only what the page needs (`Guard`): no upload of files and none that could be read, because the
browser sends pictures as 128 x 128 pixels in a message. Gradio's own files go to a scratch folder that is removed at the
end. Nothing is loaded from, or reported to, another computer.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError

HERE = Path(__file__).parent / "page"
LOOPBACK, ALL = "127.0.0.1", "0.0.0.0"
PORTS = 20  # that are tried, from the given one
LARGEST_MESSAGE = 2**18  # bytes of a request; the page's largest has two small pictures
LONGEST_QUEUE = 8
WARNING = (
    "warning: everyone on the network can use this page, without a password and without encryption; "
    "use it in a network that you trust, and stop it with Ctrl-C"
)
OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# what the page asks for; everything else, such as Gradio's uploads and files, is refused
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/heartbeat/")
CALLS = (
    "/gradio_api/startup-events",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/app_id",
    "/gradio_api/info",
)
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI application in front of Gradio's. It refuses every path but those of the page, every other name of this
    computer (a page of another site could point its own name here), and large requests.

    hosts  names under which the page may be asked for; None is any
    """

    def __init__(self, app: Any, hosts: tuple[str, ...] | None = None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no web sockets
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self.refused(scope["method"], scope["path"], headers):
            await answer(send, *problem)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)

    def refused(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and sentence of a refusal, or None."""
        if self.hosts is not None and headers.get("host", "").rsplit(":", 1)[0] not in self.hosts:
            return 421, "this page is for this computer only; ask for it as 127.0.0.1"
        known = path in PAGES or path in CALLS or path.startswith(FOLDERS)
        if not known or ".." in path or "\\" in path or method not in ("GET", "HEAD", "POST"):
            return 403, "the demo has no such page, and it gives and takes no files"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > LARGEST_MESSAGE:
            return 413, f"a request may have at most {LARGEST_MESSAGE:,} bytes"
        return None


async def answer(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})


def serve(port: int, open_browser: bool, share_on_network: bool) -> None:
    """Open the page and wait until it is stopped."""
    host = ALL if share_on_network else LOOPBACK
    port = free_port(host, port)
    if share_on_network:
        print(WARNING, file=sys.stderr, flush=True)
    # ended by kill as by Ctrl-C, so that the scratch folder is removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="diffusion-demo-") as scratch:
        page = launch(host, port, Path(scratch))
        try:
            print(f"http://{LOOPBACK}:{port}  (Ctrl-C stops it)", flush=True)
            threading.Thread(target=warm_up, daemon=True).start()
            if open_browser:
                webbrowser.open(f"http://{LOOPBACK}:{port}")
            threading.Event().wait()
        finally:
            page.close()


def launch(host: str, port: int, scratch: Path) -> Any:
    """Start Gradio's server in threads of its own."""
    os.environ |= OFFLINE | {"GRADIO_TEMP_DIR": str(scratch), "GRADIO_EXAMPLES_CACHE": str(scratch)}
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it has started
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK, "localhost"]))
    # the settings above must precede gradio
    import gradio as gr
    from starlette.middleware import Middleware

    from common.demo.page.page import build

    hosts = None if host == ALL else (LOOPBACK, "localhost")
    fonts = (
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Noto Sans CJK SC",
        "Microsoft YaHei",
        "WenQuanYi Micro Hei",
        "sans-serif",
    )
    page = build()
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        theme=gr.themes.Base(font=fonts, font_mono=("ui-monospace", "monospace")),
        css=(HERE / "style.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'easel.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)], "docs_url": None, "redoc_url": None},
    )
    return page


def free_port(host: str, port: int) -> int:
    """The first free port from this one on."""
    for candidate in range(port, min(port + PORTS, 65536)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, candidate))
            return candidate
    raise UserError(f"none of the ports {port} to {port + PORTS - 1} is free; choose another with --port")


def warm_up() -> None:
    """Open the models before the first click. A problem is shown to the visitor who needs the model."""
    from common.demo.pictures import film, models

    for opens in (models.digit_model, models.creature_pipeline, models.creature_classifier, lambda: film.opened(20)):
        with suppress(Exception):
            opens()

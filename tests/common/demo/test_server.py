"""The server: loopback alone, no files in or out, nothing left behind."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile

import psutil
import pytest

from common.demo import server as module
from common.demo.server import ALL, LARGEST_MESSAGE, LOOPBACK, WARNING, Guard, free_port, serve
from common.errors import UserError
from helpers.programs import ROOT

HOSTS = (LOOPBACK, "localhost")


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/run/predict"]
)
def test_what_the_page_needs_is_answered(path):
    assert Guard(None, HOSTS).refused("GET", path, {"host": "127.0.0.1:7860"}) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=../README.md"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/static/../../secret"),
        ("GET", "/assets/..\\..\\secret"),
        ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/component_server"),
        ("DELETE", "/"),
    ],
)
def test_files_and_everything_unknown_are_refused(method, path):
    assert Guard(None, HOSTS).refused(method, path, {"host": "127.0.0.1"})[0] == 403


def test_other_names_of_this_computer_are_refused():
    assert Guard(None, HOSTS).refused("GET", "/", {"host": "evil.example:7860"})[0] == 421
    assert Guard(None, HOSTS).refused("GET", "/", {})[0] == 421
    assert Guard(None, None).refused("GET", "/", {"host": "192.168.1.5:7860"}) is None  # shared on the network


@pytest.mark.parametrize(
    "headers",
    [{"content-length": str(LARGEST_MESSAGE + 1)}, {"transfer-encoding": "chunked"}, {"content-length": "-1"}],
)
def test_large_requests_are_refused(headers):
    assert Guard(None, None).refused("POST", "/gradio_api/queue/join", headers)[0] == 413


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(LOOPBACK, port) > port


def test_no_free_port_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "PORTS", 0)
    with pytest.raises(UserError, match="--port"):
        free_port(LOOPBACK, 7860)


@pytest.mark.parametrize(("shared", "host"), [(False, LOOPBACK), (True, ALL)])
def test_the_network_is_asked_for_and_warned_of(monkeypatch, capsys, shared, host):
    opened = []

    def launch(host, port, scratch):
        opened.append((host, scratch))
        assert scratch.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        serve(7860, False, shared)
    assert opened[0][0] == host and not opened[0][1].exists()
    assert (WARNING in capsys.readouterr().err) == shared


def test_help_names_the_flag():
    command = [sys.executable, "-m", "common.demo", "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--share-on-network" in ran.stdout


# ---------------------------------------------------------------------------------------------------- a running server


def ask(server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """One request with the path as it is, which a browser would tidy up."""
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_it_listens_on_loopback_alone(server):
    process = psutil.Process(server.process.pid)
    connections = [c for each in (process, *process.children(recursive=True)) for c in each.net_connections("inet")]
    listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {(LOOPBACK, server.port)}


def test_no_file_can_be_read(server):
    secret = os.path.join(ROOT, "pyproject.toml")
    for path in (
        f"/gradio_api/file={secret}",
        f"/file={secret}",
        f"/static/..%2f..%2f..{secret}",
        f"/assets/%2e%2e/%2e%2e/..{secret}",
        f"/gradio_api/file%3D{secret}",
        f"//{secret}",
    ):
        status, body = ask(server, "GET", path)
        assert status >= 400 and b"diffusion-course" not in body, path


def test_no_file_can_be_left(server):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../left.txt"\r\n\r\nx\r\n--x--\r\n'
    kind = "multipart/form-data; boundary=x"
    assert ask(server, "POST", "/gradio_api/upload", form, **{"Content-Type": kind})[0] == 403
    assert not [path for path in server.temporary.rglob("*") if "left" in path.name]


def test_a_huge_message_and_another_name_are_refused(server):
    assert ask(server, "POST", "/gradio_api/queue/join", b"x" * (LARGEST_MESSAGE + 1))[0] == 413
    assert ask(server, "GET", "/", Host="evil.example")[0] == 421


def test_the_page_forbids_other_computers(server):
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=60)
    connection.request("GET", "/")
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 200 and "default-src 'self'" in response.headers["content-security-policy"]
    assert "demoEasel" in body


def test_it_writes_into_a_scratch_folder_alone(server):
    inside = {path.name for path in server.temporary.iterdir()}
    assert all(name.startswith("diffusion-demo-") for name in inside) and list(server.cwd.iterdir()) == []
    assert tempfile.gettempdir() != str(server.temporary)

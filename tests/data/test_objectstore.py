"""Addresses, credentials and errors of servers: http, s3, gs and az on loopback, by obstore."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distgan.data.remote.cache import RemoteStorage
from distgan.data.remote.objectstore import aws_profile
from distgan.errors import DistganError, RunError, UsageError

Respond = Callable[[BaseHTTPRequestHandler], None]


class Handler(BaseHTTPRequestHandler):
    respond: Respond

    def do_GET(self) -> None:
        type(self).respond(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


def answer(request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def serve() -> Iterator[Callable[..., ThreadingHTTPServer]]:
    """Starts a server that answers by `respond`, over TLS if `certificate` is given; returns it."""
    servers = []

    def start(respond: Respond, certificate: Path | None = None) -> ThreadingHTTPServer:
        handler = type("Answering", (Handler,), {"respond": staticmethod(respond)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            server.handle_error = lambda request, client_address: None  # the client hangs up
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def host(server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def fetch(address: str, cache: Path, timeout: float = 0.1) -> bytes:
    storage = RemoteStorage(address, cache)
    storage.timeout = timeout
    return storage.path("manifest.json").read_bytes()


def respond_with(status: int, body: bytes = b"") -> Respond:
    return lambda request: answer(request, body, status, Content_Length=str(len(body)))


def redirect_forever(request: BaseHTTPRequestHandler) -> None:
    answer(request, b"", 302, Location=request.path, Content_Length="0")


@pytest.mark.parametrize(
    ("respond", "kind", "message"),
    [
        (respond_with(403, b"<html>go away\n</html>"), UsageError, "HTTP 403 Forbidden"),
        (respond_with(410), UsageError, "HTTP 410 Gone"),
        (respond_with(503), RunError, "gave up after 0 s without a byte: HTTP 503 Service Unavailable"),
        (respond_with(429), RunError, "gave up after 0 s without a byte: HTTP 429 Too Many Requests"),
        (redirect_forever, UsageError, r"error following redirect \(TooManyRedirects\)"),
        (lambda request: answer(request, b"no length"), UsageError, "Content-Length Header missing.*"),
        (lambda request: answer(request, b"x", Content_Length="9"), RunError, r"gave up .* \(IncompleteBody\)"),
    ],
)
def test_errors_of_servers_are_one_line_with_address_and_cause(serve, tmp_path, respond, kind, message):
    address = f"http://{host(serve(respond))}/set"
    with pytest.raises(kind) as caught:
        fetch(address, tmp_path)
    assert re.fullmatch(f"{address}/manifest.json: {message}", str(caught.value))


def test_unreachable_and_unknown_hosts_are_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for address, message in (
        (f"http://127.0.0.1:{free}", r"\(Connection refused\)"),
        ("http://nowhere.invalid", r"nowhere.invalid/manifest.json: gave up .*\(.*(lookup|resolve|resolution).*\)"),
    ):
        with pytest.raises(RunError, match=message):
            fetch(address, tmp_path)


def test_unknown_certificate_is_refused_at_once(serve, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    certificate = tmp_path / "both.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    pair = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem"]
    subprocess.run(["openssl", *words.split(), *pair], check=True, capture_output=True)
    certificate.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    server = serve(respond_with(200, b"secret"), certificate)
    with pytest.raises(UsageError, match="invalid certificate"):
        fetch(f"https://{host(server)}", tmp_path / "cache", timeout=20)


def test_redirects_to_another_host_are_followed(serve, tmp_path):
    """As Hugging Face does, from /resolve/main/FILE to its storage."""
    storage = serve(respond_with(200, b"found"))
    hub = serve(
        lambda request: answer(request, b"", 302, Location=f"http://{host(storage)}/x?sig=1", Content_Length="0")
    )
    assert fetch(f"http://{host(hub)}/datasets/a/b/resolve/main", tmp_path) == b"found"


def test_names_are_quoted_in_addresses(serve, tmp_path):
    asked = []

    def respond(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        answer(request, b"x", Content_Length="1")

    storage = RemoteStorage(f"http://{host(serve(respond))}/a b", tmp_path)
    for name in ("c d#1?.tar", "100%.tar", "e/ü.tar"):
        storage.path(name)
    assert asked == ["/a%20b/c%20d%231%3F.tar", "/a%20b/100%25.tar", "/a%20b/e/%C3%BC.tar"]


def test_google_and_azure_addresses_ask_their_servers(serve, tmp_path, monkeypatch):
    """The requests that obstore sends; the servers here check no credentials."""
    asked = []

    def respond(request: BaseHTTPRequestHandler) -> None:
        asked.append(urllib.parse.unquote(request.path))
        answer(request, b"found", Content_Length="5", ETag='"1"', Last_Modified="Wed, 01 Jan 2025 00:00:00 GMT")

    address = f"http://{host(serve(respond))}"
    account = tmp_path / "account.json"
    account.write_text(
        json.dumps(
            {
                "gcs_base_url": address,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        )
    )
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    assert fetch("gs://bucket/set", tmp_path / "gs") == b"found"
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", address)
    assert fetch("az://container/set", tmp_path / "az") == b"found"
    assert asked == ["/bucket/set/manifest.json", "/devstoreaccount1/container/set/manifest.json"]


def test_aws_profile_is_read_where_the_environment_gives_nothing(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-central-1\nendpoint_url = http://s3.lab\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = s%cret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert aws_profile() == {}
    monkeypatch.setenv("AWS_PROFILE", "lab")
    place = {"region": "eu-central-1", "endpoint": "http://s3.lab"}
    assert aws_profile() == {"access_key_id": "key", "secret_access_key": "s%cret", **place}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert aws_profile() == place
    (tmp_path / "config").write_text("no section\n")
    with pytest.raises(UsageError, match="s3://images: "):
        RemoteStorage("s3://images", tmp_path)


def test_azure_without_an_account_is_bad_input(tmp_path, monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DistganError, match="az://container/set: .*Account must be specified"):
        fetch("az://container/set", tmp_path)

"""The URL fetcher: no SSRF vector opens a socket; slow, endless and lying servers are limited."""

import ast
import asyncio
import gzip
import ipaddress
import ssl
import tracemalloc

import pytest
from attacks.ssrf_vectors import REDIRECTS, VECTORS, Vector
from support.fake_internet import PUBLIC, FakeInternet, answering, redirect, response, serving, watched_sockets
from support.source import imports_of, nodes_of_package

from siglip_onnx.web import fetch as fetch_module
from siglip_onnx.web.addresses import is_public
from siglip_onnx.web.errors import RequestError
from siglip_onnx.web.fetch import Fetcher
from siglip_onnx.web.settings import Limits

ANSWERS = {"example.com": [PUBLIC], "other.example": ["2606:2800:220:1::1"], "rebound.example": ["127.0.0.1"],
           "localhost": ["127.0.0.1"]}  # fmt: skip


def fetched(serve: object, internet: FakeInternet | None = None, url: str = "http://example.com/a.png") -> bytes:
    internet = internet or FakeInternet(dict(ANSWERS))

    async def run() -> bytes:
        async with serving(serve, internet):  # type: ignore[arg-type]
            return await internet.fetcher().fetch(url)

    return asyncio.run(run())


def refusal(serve: object, internet: FakeInternet | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetched(serve, internet)
    return caught.value


def test_number_of_vectors() -> None:
    assert len({vector.url + str(vector.answers) for vector in VECTORS}) >= 25


@pytest.mark.parametrize("vector", VECTORS, ids=[vector.name for vector in VECTORS])
def test_no_vector_opens_a_socket(vector: Vector) -> None:
    class Answers(FakeInternet):
        async def resolve(self, host: str, port: int) -> list[str]:
            self.answers = {host: list(vector.answers)}
            return await super().resolve(host, port)

    internet = Answers()
    fetcher = Fetcher(Limits(), resolve=internet.resolve)  # with real connections
    with watched_sockets() as events, pytest.raises(RequestError) as caught:
        asyncio.run(fetcher.fetch(vector.url))
    assert caught.value.code in ("url_refused", "fetch_failed")
    assert caught.value.code == "url_refused" or not vector.answers
    assert [event for event in events if event[0] != "socket.getaddrinfo"] == []
    assert len(internet.resolved) <= 1


def test_the_audit_hook_sees_sockets() -> None:
    """Proves that the vectors' test would fail without the check."""
    internet = FakeInternet()
    with watched_sockets() as events:
        assert fetched(answering(response(b"x")), internet, f"http://{PUBLIC}/") == b"x"
    assert ("socket.connect", ("127.0.0.1", internet.port)) in [(name, args[1]) for name, args in events]


@pytest.mark.parametrize("location", REDIRECTS)
def test_redirects_to_private_addresses_are_not_followed(location: str) -> None:
    internet = FakeInternet(dict(ANSWERS))
    error = refusal(answering(redirect(location)), internet)
    assert error.code == "url_refused"
    assert internet.dialed == [(PUBLIC, 80)]


def test_three_redirects_are_followed_to_checked_addresses() -> None:
    internet = FakeInternet(dict(ANSWERS))
    hops = [redirect("/b.png"), redirect("http://other.example/c.png"), redirect("//example.com/d.png")]
    assert fetched(answering(*hops, response(b"image")), internet) == b"image"
    assert internet.dialed == [(PUBLIC, 80), (PUBLIC, 80), ("2606:2800:220:1::1", 80), (PUBLIC, 80)]
    internet = FakeInternet(dict(ANSWERS))
    assert "more than 3" in str(refusal(answering(redirect("/again")), internet))
    assert len(internet.dialed) == 4


def test_names_are_resolved_once_and_the_checked_address_is_dialed() -> None:
    """So a resolver that answers differently the second time (DNS rebinding) has no effect."""

    class Rebinding(FakeInternet):
        async def resolve(self, host: str, port: int) -> list[str]:
            await super().resolve(host, port)
            return [PUBLIC] if len(self.resolved) == 1 else ["127.0.0.1"]

    internet = Rebinding({"example.com": [PUBLIC]})
    assert fetched(answering(response(b"x")), internet) == b"x"
    assert internet.resolved == ["example.com"]
    assert internet.dialed == [(PUBLIC, 80)]
    internet = Rebinding({"example.com": [PUBLIC]})
    assert refusal(answering(redirect("http://example.com/b")), internet).code == "url_refused"
    assert internet.dialed == [(PUBLIC, 80)]


def test_next_address_is_tried_if_one_is_unreachable() -> None:
    class Half(FakeInternet):
        async def dial(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> object:  # type: ignore[override]
            if address.version == 6:
                self.dialed.append((str(address), port))
                raise OSError("unreachable")
            return await super().dial(address, port)

    internet = Half({"example.com": ["2606:2800:220:1::1", PUBLIC]})
    assert fetched(answering(response(b"x")), internet) == b"x"
    assert [address for address, _ in internet.dialed] == ["2606:2800:220:1::1", PUBLIC]


@pytest.mark.parametrize("byte_by_byte", ["header", "body"])
def test_slow_server_is_abandoned(byte_by_byte: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "TOTAL_SECONDS", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        whole = response(b"a" * 1000)
        start = 0 if byte_by_byte == "header" else whole.index(b"a" * 10)
        writer.write(whole[:start])
        for position in range(start, len(whole)):
            writer.write(whole[position : position + 1])
            await writer.drain()
            await asyncio.sleep(0.02)

    assert "seconds" in str(refusal(serve))


def test_server_that_does_not_accept_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "CONNECT_SECONDS", 0.1)

    class Hanging(FakeInternet):
        async def dial(self, *_: object) -> object:  # type: ignore[override]
            return await asyncio.Event().wait()

    assert "no connection" in str(refusal(answering(b""), Hanging(dict(ANSWERS))))


def test_gzip_bomb_is_limited_by_its_decoded_size() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)
    tracemalloc.start()
    error = refusal(answering(response(bomb, "Content-Encoding: gzip")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "too_large"
    assert peak < 80_000_000


@pytest.mark.parametrize(
    "answer",
    [response(b"image"), response(gzip.compress(b"image"), "Content-Encoding: gzip"),
     b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage and more"],
    ids=["plain", "gzip", "short length"],
)  # fmt: skip
def test_bodies_are_read_as_declared(answer: bytes) -> None:
    assert fetched(answering(answer)) == b"image"


def test_endless_body_is_refused() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(65536))
            await writer.drain()

    assert refusal(serve).code == "too_large"


def with_length(declared: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: " + declared + b"\r\n\r\nimage"


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000, response(b"", status="404 No"),
     response(b"", status="204 Empty"), b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
     response(b"x", "Content-Encoding: br"), response(b"not gzip", "Content-Encoding: gzip"),
     *map(with_length, (b"9999", b"-1", b"1, 2", b"0x10"))],
    ids=["nothing", "ssh", "endless header", "404", "204", "redirect without location", "brotli", "damaged gzip",
         "long length", "negative length", "two lengths", "hexadecimal length"],
)  # fmt: skip
def test_invalid_responses_are_errors(answer: bytes) -> None:
    assert refusal(answering(answer)).code == "fetch_failed"


def test_request_reveals_nothing_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response(b"x"))

    internet = FakeInternet(dict(ANSWERS))
    assert fetched(serve, internet, "http://EXAMPLE.com:80/犬.png?größe=1#part") == b"x"
    assert internet.dialed == [(PUBLIC, 80)]
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /%E7%8A%AC.png?gr%C3%B6%C3%9Fe=1 HTTP/1.1"
    assert "Host: example.com" in lines
    assert not any(line.lower().startswith(("cookie", "referer", "authorization")) for line in lines)


def test_https_verifies_the_certificate() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(server)
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)

    async def run(url: str, tls: ssl.SSLContext | None) -> bytes:
        internet = FakeInternet({"example.com": [PUBLIC], "wrong.example": [PUBLIC]})
        async with serving(answering(response(b"x")), internet, server):
            content = await internet.fetcher(tls=tls).fetch(url)
        assert internet.dialed == [(PUBLIC, 443)]
        return content

    assert asyncio.run(run("https://example.com/", client)) == b"x"
    assert names == ["example.com"]
    for url, tls in (("https://wrong.example/", client), ("https://example.com/", None)):
        with pytest.raises(RequestError, match="not trusted"):
            asyncio.run(run(url, tls))


def test_only_allowed_domains_are_fetched() -> None:
    internet = FakeInternet({name: [PUBLIC] for name in ("images.example", "a.images.example", "example")})

    async def run(url: str) -> bytes:
        async with serving(answering(response(b"x")), internet):
            return await internet.fetcher("Images.example").fetch(url)

    for url in ("http://images.example/", "http://a.images.example/", "http://IMAGES.example./"):
        assert asyncio.run(run(url)) == b"x"
    for url in ("http://example/", "http://evilimages.example/", "http://images.example.evil/", f"http://{PUBLIC}/"):
        with pytest.raises(RequestError, match="other domains"):
            asyncio.run(run(url))


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_the_fetcher_is_the_only_network_client() -> None:
    clients = {"h11", "http.client", "httpx", "httpx2", "requests", "urllib.request", "urllib3", "aiohttp", "ftplib",
               "smtplib", "telnetlib", "xmlrpc"}  # fmt: skip
    users: dict[str, set[str]] = {}
    for path, node in nodes_of_package():
        if used := imports_of(node) & (clients | {"socket", "ssl"}):
            users.setdefault(path, set()).update(used)
    assert users == {
        "web/fetch.py": {"h11", "socket", "ssl"},
        "web/server.py": {"socket"},
        "web/connection.py": {"h11"},  # as a server
    }
    called = {
        node.attr for path, node in nodes_of_package() if path == "web/server.py" and isinstance(node, ast.Attribute)
    }
    assert not called & {"connect", "create_connection", "open_connection", "sendto"}

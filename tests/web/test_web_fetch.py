"""The URL fetcher: no SSRF vector opens a socket; slow, endless and lying servers are limited."""

import ast
import asyncio
import base64
import gzip
import ipaddress
import ssl
import tracemalloc
from typing import Any

import pytest
from attacks.ssrf_vectors import REDIRECTS, VECTORS, Vector
from support.fake_internet import PUBLIC, FakeInternet, answering, redirect, response, serving, watched_sockets
from support.source import imports_of, nodes_of_package

import siglip_onnx
from siglip_onnx.errors import OptionError
from siglip_onnx.web import fetch as fetch_module
from siglip_onnx.web.addresses import is_public
from siglip_onnx.web.errors import RequestError
from siglip_onnx.web.fetch import Fetcher
from siglip_onnx.web.lookups import TooManyLookupsError
from siglip_onnx.web.settings import Limits, Settings

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


@pytest.mark.parametrize("location", ["http://[", "//[::1", "http://a]b/"])
def test_redirects_to_malformed_urls_are_refused(location: str) -> None:
    assert refusal(answering(redirect(location))).code == "url_refused"


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


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "CONNECT_SECONDS", 1.0)

    class Half(FakeInternet):
        async def dial(self, address: Any, port: int) -> Any:
            if address.version == 6:
                await asyncio.Event().wait()
            return await super().dial(address, port)

    internet = Half({"example.com": ["2606:2800:220:1::1", "2606:2800:220:1::2", PUBLIC]})
    assert fetched(answering(response(b"x")), internet) == b"x"


@pytest.mark.parametrize("slow", [1, 3])
def test_slow_addresses_are_waited_for_beside_each_other(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(fetch_module, "ATTEMPT_SECONDS", 0.05)
    sockets: list[Any] = []

    class Far(FakeInternet):
        async def dial(self, address: Any, port: int) -> Any:
            await asyncio.sleep(0.5)
            sockets.append(await super().dial(address, port))
            return sockets[-1]

    internet = Far({"example.com": [PUBLIC, "8.8.8.8", "8.8.4.4"][:slow]})
    assert fetched(answering(response(b"x")), internet) == b"x"
    assert all(each.fileno() == -1 for each in sockets)  # also those that came second


def test_too_many_lookups_are_named() -> None:
    class Busy(FakeInternet):
        async def resolve(self, *_: object) -> list[str]:
            raise TooManyLookupsError("too many lookups of host names")

    assert "too many lookups of host names; try it again later" in str(refusal(answering(b""), Busy()))


def test_gzip_bomb_is_limited_by_its_decoded_size() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)
    tracemalloc.start()
    error = refusal(answering(response(bomb, "Content-Encoding: gzip")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "too_large"
    assert peak < 80_000_000


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def test_many_small_events_are_refused() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert fetched(answering(chunked(*[b"a"] * 999))) == b"a" * 999
    assert fetched(answering(early * 20 + response(b"image"))) == b"image"
    lines = [b"a" * 256] * 20_000  # as a server sends them that iterates over a file
    assert fetched(answering(chunked(*lines))) == b"".join(lines)
    assert "its server sends too many small chunks" in str(refusal(answering(chunked(*[b"a"] * 1100))))
    assert "too many informational responses" in str(refusal(answering(early * 21 + response(b"image"))))


def test_other_requests_are_served_between_events_that_have_come_together() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> None:
        internet = FakeInternet(dict(ANSWERS))
        async with serving(answering(chunked(*[b"a"] * 900)), internet):
            other = asyncio.create_task(others())
            await internet.fetcher().fetch("http://example.com/a.png")
            other.cancel()

    asyncio.run(run())
    assert turns > 900


@pytest.mark.parametrize("cut", [1, 4, 8, 12])
def test_gzip_in_parts_is_read_and_cut_short_is_damaged(cut: int) -> None:
    whole = gzip.compress(b"image" * 100)
    answer = chunked(whole[:-cut], whole[-cut:]).replace(b"OK\r\n", b"OK\r\nContent-Encoding: gzip\r\n", 1)
    assert fetched(answering(answer)) == b"image" * 100
    assert "compressed content is damaged" in str(refusal(answering(response(whole[:-cut], "Content-Encoding: gzip"))))


@pytest.mark.parametrize("num_chunks", [1, 20_000])
def test_bytes_after_the_end_of_gzip_are_refused(num_chunks: int) -> None:
    answer = chunked(gzip.compress(b"image"), *[bytes(1000)] * num_chunks)
    answer = answer.replace(b"OK\r\n", b"OK\r\nContent-Encoding: gzip\r\n", 1)
    assert "compressed content is damaged" in str(refusal(answering(answer)))


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


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SIGLIP_ONNX_URL_CONTACT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_request_reveals_nothing_of_the_user() -> None:
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
    assert f"User-Agent: siglip-onnx/{siglip_onnx.__version__}" in lines
    assert not any(line.lower().startswith(("cookie", "referer", "authorization")) for line in lines)


@pytest.mark.parametrize("contact", ["me@photos.example", "https://photos.example/about"])
def test_user_agent_names_the_contact(contact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"siglip-onnx/{siglip_onnx.__version__} ({contact})"
    assert fetch_module.user_agent(contact) == expected
    monkeypatch.setenv("SIGLIP_ONNX_URL_CONTACT", contact)
    internet = FakeInternet(dict(ANSWERS))
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response(b"x"))

    assert fetched(serve, internet) == b"x"
    assert f"User-Agent: {expected}\r\n".encode() in heads[0]


@pytest.mark.parametrize("contact", ["me", "me@a.example\r\nCookie: x", "me@a.example (x)", "ü@a.example", " "])
def test_malformed_contacts_are_refused(contact: str) -> None:
    with pytest.raises(OptionError, match="--url-contact"):
        Settings(url_contact=contact)


def test_refusal_without_contact_says_what_to_do() -> None:
    assert "--url-contact" in str(refusal(answering(response(b"", status="403 Forbidden"))))


class Proxy:
    """A proxy that connects every CONNECT to one server, or refuses."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n", *, tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.tls = answer, tls
        self.heads: list[list[str]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n"))
        writer.write(self.answer)
        await writer.drain()
        if not self.answer.startswith(b"HTTP/1.1 200"):
            return
        if self.tls:
            await writer.start_tls(self.tls)
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n"))
        writer.write(response(b"x"))
        await writer.drain()

    def fetch(self, url: str, monkeypatch: pytest.MonkeyPatch, *, login: str = "", **options: Any) -> bytes:
        tunnel, internet = FakeInternet(), FakeInternet(dict(ANSWERS) | {"inside.example": ["10.0.0.1"]})

        async def run() -> bytes:
            async with serving(self.serve, tunnel):
                for name in ("http_proxy", "https_proxy"):
                    monkeypatch.setenv(name, f"http://{login}127.0.0.1:{tunnel.port}")
                return await internet.fetcher(**options).fetch(url)

        try:
            return asyncio.run(run())
        finally:
            assert internet.dialed == []  # every connection goes through the proxy


def test_proxy_of_the_environment_gets_only_checked_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    assert proxy.fetch("http://example.com/a.png", monkeypatch, login="me:p%40ss@") == b"x"
    connect, get = proxy.heads
    assert connect[:2] == [f"CONNECT {PUBLIC}:80 HTTP/1.1", f"Host: {PUBLIC}:80"]
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}" in connect
    assert get[0] == "GET /a.png HTTP/1.1"
    assert not any("Proxy" in line for line in get)
    for url in ("http://inside.example/", "http://127.0.0.1/", "http://rebound.example/"):
        proxy = Proxy()
        with pytest.raises(RequestError, match="public address"):
            proxy.fetch(url, monkeypatch)
        assert proxy.heads == []


def test_every_address_of_a_proxy_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On many systems localhost is ::1 first, where a proxy need not listen."""

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["::1", "127.0.0.1"]

    monkeypatch.setattr(fetch_module, "resolve_host", resolve)
    proxy = Proxy()
    assert proxy.fetch("http://example.com/a.png", monkeypatch) == b"x"
    assert proxy.heads[0][0] == f"CONNECT {PUBLIC}:80 HTTP/1.1"


def test_a_slow_proxy_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "CONNECT_SECONDS", 2.0)
    monkeypatch.setitem(ANSWERS, "example.com", [PUBLIC, "8.8.8.8", "8.8.4.4", "1.1.1.1"])

    class Slow(Proxy):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.8)
            await super().serve(reader, writer)

    proxy = Slow()
    assert proxy.fetch("http://example.com/a.png", monkeypatch) == b"x"
    assert [head[0].split()[0] for head in proxy.heads] == ["CONNECT", "GET"]


def test_https_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    trustme = pytest.importorskip("trustme")
    authority, client = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(server)
    proxy = Proxy(tls=server)
    assert proxy.fetch("https://example.com/", monkeypatch, tls=client) == b"x"
    assert proxy.heads[0][0] == f"CONNECT {PUBLIC}:443 HTTP/1.1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 403 Forbidden\r\n\r\n", "answered 403 to CONNECT"), (b"", "answered 0 to CONNECT"),
     (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n", "to CONNECT"), (b"x" * 20_000, "to CONNECT")],
)  # fmt: skip
def test_proxies_that_refuse(answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        Proxy(answer).fetch("http://example.com/", monkeypatch)
    assert caught.value.code == "fetch_failed"


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1:port", "http://"])
def test_other_proxies_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", url)
    error = refusal(answering(response(b"x")))
    assert "not the URL of an HTTP proxy" in str(error)


def test_no_proxy_is_honored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "proxy of this server cannot be reached" in str(refusal(answering(response(b"x"))))
    monkeypatch.setenv("no_proxy", "localhost,.com")
    assert fetched(answering(response(b"x"))) == b"x"


@pytest.mark.parametrize("domains", [(), ("images.example",)])
def test_allowed_networks(domains: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras at home: any port, no proxy; what is outside of the network stays refused."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    networks = ("192.168.1.0/24", "fd00::/64")
    internet = FakeInternet({"camera.lan": ["192.168.1.9"], "mixed.example": ["192.168.1.9", PUBLIC],
                             "inside.example": ["10.0.0.1"], "images.example": [PUBLIC]})  # fmt: skip
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response(b"x"))

    async def run(url: str) -> bytes:
        async with serving(serve, internet):
            return await internet.fetcher(*domains, networks=networks).fetch(url)

    assert asyncio.run(run("http://192.168.1.7:8080/snap.jpg?channel=1")) == b"x"
    assert b"Host: 192.168.1.7:8080\r\n" in heads[-1]
    assert asyncio.run(run("http://[fd00::7]/")) == b"x"
    assert internet.dialed == [("192.168.1.7", 8080), ("fd00::7", 80)]
    if not domains:
        assert asyncio.run(run("http://camera.lan:81/")) == b"x"
    refused = ["http://192.168.2.7/", "http://127.0.0.1/", "http://10.0.0.1:8080/", "http://inside.example/",
               "http://mixed.example/", "http://images.example:8080/", "http://192.168.1.7:0/"]  # fmt: skip
    for url in refused:
        with pytest.raises(RequestError) as caught:
            asyncio.run(run(url))
        assert caught.value.code == "url_refused", url


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


def test_no_handshake_of_large_diffie_hellman_groups_is_offered() -> None:
    """One of 10,000 bits takes a second of the event loop."""
    names = [cipher["name"] for cipher in Fetcher(Limits())._tls_context().get_ciphers()]
    assert any(name.startswith("ECDHE-") for name in names)
    assert not any(name.startswith(("DHE-", "EDH-", "ADH-")) for name in names)


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
        "web/egress.py": {"urllib.request"},  # reads the environment
        "web/fetch.py": {"h11", "socket", "ssl"},
        "web/lookups.py": {"socket"},  # of host names
        "web/server.py": {"socket"},
        "web/bounded_http.py": {"h11"},  # the protocol without a network
        "web/connection.py": {"h11"},  # as a server
    }
    called = {
        node.attr for path, node in nodes_of_package() if path == "web/server.py" and isinstance(node, ast.Attribute)
    }
    assert not called & {"connect", "create_connection", "open_connection", "sendto"}

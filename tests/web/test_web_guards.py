"""Request guards: Host, Origin, API key, and security headers."""

from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient
from support.web_server import BASE_URL, error_of

import siglip_onnx
from siglip_onnx.errors import OptionError
from siglip_onnx.web import guards
from siglip_onnx.web.app import create_app
from siglip_onnx.web.guards import SECURITY_HEADERS, is_allowed_host, is_same_origin
from siglip_onnx.web.hosts import HostNames
from siglip_onnx.web.settings import Settings, is_loopback

PATHS = ("/", "/v1/models", "/static/main.js", "/samples/red_star.png", "/nothing", "/healthz", "/openapi.json")


def client_with(**settings: object) -> TestClient:
    app = create_app([siglip_onnx.load("demo")], Settings(**settings))  # type: ignore[arg-type]
    return TestClient(app, base_url=BASE_URL)


ANY = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("header", "bound_to"),
    [("127.0.0.1:5678", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("localhost:8080", "127.0.0.1"),
     ("photos.example.", "127.0.0.1"), ("LOCALHOST", "127.0.0.1"), ("[::1]:5678", "::1"),
     ("photos.example", "127.0.0.1"), ("Photos.Example:5678", "127.0.0.1"), ("192.168.1.7:5678", ANY)],
)  # fmt: skip
def test_allowed_hosts(header: str, bound_to: str) -> None:
    assert is_allowed_host(header, bound_to, {"photos.example"})


@pytest.mark.parametrize(
    "header",
    ["rebound.example:5678", "localhost.rebound.example", "127.0.0.1.rebound.example", "192.168.1.7:5678",
     "127.0.0.1:5678@rebound.example", "127.0.0.1:port", "[::1", "[::1]x", "2130706433", "", ":5678"],
)  # fmt: skip
def test_forbidden_hosts(header: str) -> None:
    assert not is_allowed_host(header, "127.0.0.1", {"photos.example"})
    assert not is_allowed_host("rebound.example", ANY, {"photos.example"})


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://127.0.0.1:5678", "127.0.0.1:5678"), ("https://photos.example", "photos.example"),
     ("https://photos.example", "photos.example:443")],
)  # fmt: skip
def test_same_origin(origin: str, host: str) -> None:
    assert is_same_origin(origin, host)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:5678", "http://127.0.0.1:8000", "http://evil.example", "null", "", "file://127.0.0.1:5678"],
)
def test_other_origins(origin: str) -> None:
    assert not is_same_origin(origin, "127.0.0.1:5678")


@pytest.mark.parametrize("path", PATHS)
def test_rebound_host_names_are_refused(path: str) -> None:
    error_of(client_with().get(path, headers={"host": "rebound.example:5678"}), 403, "forbidden_host")


@pytest.mark.parametrize(
    ("option", "headers"),
    [
        ("photos.example", ["photos.example", "PHOTOS.example:8443", "photos.example."]),
        ("photos.example:8443", ["photos.example", "photos.example:8443", "photos.example:5678"]),
        ("https://Photos.Example/", ["photos.example"]),
        ("http://photos.example:80", ["photos.example"]),
        ("photos.example.", ["photos.example", "photos.example."]),
        ("*.photos.example", ["a.photos.example", "a.b.photos.example:80"]),
        ("siglip_web", ["siglip_web:5678"]),
        ("bücher.example", ["xn--bcher-kva.example"]),
        ("192.168.1.7:80", ["192.168.1.7:8080"]),
        ("fd00::7", ["[fd00::7]:8080", "[FD00:0::7]"]),
        ("[fd00::7]:80", ["[fd00::7]"]),
    ],
)
def test_every_form_of_an_allowed_host(option: str, headers: list[str]) -> None:
    """A name that is accepted as an option is accepted as Host and as Origin, whatever the other one says."""
    client = client_with(allowed_hosts=(option,))
    for header in headers:
        assert client.get("/v1/models", headers={"host": header}).status_code == 200, header
        for scheme in ("http", "https"):
            origin = {"origin": f"{scheme}://{header}"}
            assert client.get("/v1/models", headers=origin).status_code == 200, header
    for other in ("example", "example.com", "photos.example.evil.example", "xphotos.example", "192.168.1.8"):
        error_of(client.get("/v1/models", headers={"host": other}), 403, "forbidden_host")
        error_of(client.get("/v1/models", headers={"origin": f"https://{other}"}), 403, "forbidden_origin")


def test_a_wildcard_is_not_the_name_itself() -> None:
    assert "photos.example" not in HostNames(["*.photos.example"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"allowed_hosts": ("",)}, "name or address of a host"),
        ({"allowed_hosts": ("*",)}, "would allow every host"),
        ({"allowed_hosts": ("a.example,b.example",)}, "name or address of a host"),
        ({"allowed_hosts": ("a.*.example",)}, "name or address of a host"),
        ({"allowed_hosts": (".photos.example",)}, "name or address of a host"),
        ({"allowed_hosts": ("photos.example:https",)}, "name or address of a host"),
        ({"allowed_hosts": ("ftp://photos.example",)}, "scheme other than"),
        ({"allowed_hosts": ("https://photos.example/siglip",)}, "--root-path"),
        ({"allowed_hosts": ("user@photos.example",)}, "Give the name alone"),
        ({"url_domains": ("https://images.example/a",)}, "--url-allow-domain"),
        ({"trusted_proxies": ("proxy.example",)}, "--trusted-proxy proxy.example is not an address"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "--trusted-proxy"),
        ({"url_networks": ("192.168.1",)}, "--url-allow-network"),
        ({"root_path": "/a/../b"}, "--root-path"),
        ({"root_path": "https://photos.example/a"}, "--root-path"),
        ({"allowed_origins": ("app.example",)}, "--allow-origin app.example is not an origin"),
        ({"frame_origins": ("https://app.example/page",)}, "--allow-frame"),
        ({"frame_origins": ("https://app.example;script-src",)}, "--allow-frame"),
    ],
)
def test_options_that_would_never_match_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Settings(**settings)  # type: ignore[arg-type]


def test_forwarded_host_only_from_trusted_proxies() -> None:
    forwarded = {"host": "siglip:5678", "x-forwarded-host": "photos.example"}
    names = ("photos.example",)
    error_of(client_with(allowed_hosts=names).get("/healthz", headers=forwarded), 403, "forbidden_host")
    for proxies, address in (
        (("10.0.0.0/8", "192.0.2.7"), "192.0.2.7"), (("10.0.0.0/8",), "::ffff:10.1.2.3"), (("fd00::/8",), "fd00::9"),
    ):  # fmt: skip
        app = create_app([siglip_onnx.load("demo")], Settings(allowed_hosts=names, trusted_proxies=proxies))
        for client_address, status in ((address, 200), ("192.0.2.8", 403)):
            client = TestClient(app, base_url=BASE_URL, client=(client_address, 5000))
            assert client.get("/healthz", headers=forwarded).status_code == status
        client = TestClient(app, base_url=BASE_URL, client=(address, 5000))
        rebound = forwarded | {"x-forwarded-host": "photos.example, rebound.example"}
        error_of(client.get("/healthz", headers=rebound), 403, "forbidden_host")


@pytest.mark.parametrize("prefix", ["/siglip", "siglip/", "/a/siglip"])
def test_path_prefix_whether_the_proxy_removes_it_or_not(prefix: str) -> None:
    client = client_with(root_path=prefix, api_key="k")
    prefix = "/" + prefix.strip("/")
    for base in ("", prefix):
        assert "<h1>" in client.get(f"{base}/").text
        assert client.get(f"{base}/static/main.js").headers["content-type"].startswith("text/javascript")
        assert client.get(f"{base}/samples/red_star.png").status_code == 200
        assert client.get(f"{base}/v1/models").status_code == 401  # the key protects both
        assert client.get(f"{base}/v1/models", headers={"x-api-key": "k"}).status_code == 200
        assert client.get(f"{base}/openapi.json").json()["servers"] == [{"url": prefix}]
        assert client.get(f"{base}/nothing").status_code == 404
    redirect = client.get(prefix, follow_redirects=False)
    assert redirect.status_code == 307
    assert urljoin(f"{BASE_URL}{prefix}", redirect.headers["location"]) == f"{BASE_URL}{prefix}/"
    assert "content-security-policy" in redirect.headers
    error_of(client.get(prefix, headers={"host": "rebound.example"}, follow_redirects=False), 403, "forbidden_host")


def test_redirects_name_neither_a_host_nor_a_prefix() -> None:
    """The proxy may have removed a prefix, of which this server does not know."""
    redirect = client_with().get("/v1/models/", params={"a": "b"}, follow_redirects=False)
    assert (redirect.status_code, redirect.headers["location"]) == (307, "../models?a=b")
    assert urljoin("https://photos.example/siglip/v1/models/", "../models") == "https://photos.example/siglip/v1/models"


GETS = ("/", "/v1/models", "/static/main.js", "/samples/red_star.png", "/healthz", "/metrics", "/openapi.json")


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(path: str) -> None:
    client = client_with()
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which has counted one more
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_of_other_routes() -> None:
    assert client_with().head("/v1/classify").status_code == 405
    assert client_with().head("/nothing").status_code == 404
    assert client_with(api_key="k").head("/v1/models").status_code == 401


@pytest.mark.parametrize("allowed", ["https://app.example", "HTTPS://App.Example:443/", "*"])
def test_pages_of_allowed_origins_use_the_api(allowed: str) -> None:
    client = client_with(allowed_origins=(allowed,), api_key="k")
    app = {"origin": "https://app.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    preflight = client.options("/v1/classify", headers=app | {"access-control-request-method": "POST"})
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    for key, status in (("k", 200), ("wrong", 401)):
        answer = client.get("/v1/models", headers=app | {"x-api-key": key})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ("*" if allowed == "*" else "https://app.example")
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
    other = app | {"origin": "https://other.example"}
    answer = client.get("/v1/models", headers=other | {"x-api-key": "k"})
    assert answer.status_code == (200 if allowed == "*" else 403)
    assert ("access-control-allow-origin" in answer.headers) is (allowed == "*")
    no_cors = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "x-api-key": "k"}
    assert client.get("/v1/models", headers=no_cors).status_code == 403
    rebound = client.get("/v1/models", headers=app | {"x-api-key": "k", "host": "rebound.example"})
    error_of(rebound, 403, "forbidden_host")


def test_preflight_is_refused_by_default() -> None:
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    error_of(client_with().options("/v1/classify", headers=headers), 403, "forbidden_origin")


def test_frames_of_allowed_origins() -> None:
    headers = client_with(frame_origins=("https://App.example", "http://10.0.0.1:80")).get("/").headers
    assert "frame-ancestors 'self' https://app.example http://10.0.0.1;" in headers["content-security-policy"]
    assert "x-frame-options" not in headers
    assert set(SECURITY_HEADERS) - {"X-Frame-Options"} <= {name.title() for name in headers} | {
        "Content-Security-Policy", "X-Content-Type-Options",
    }  # fmt: skip


def test_two_host_headers_are_refused() -> None:
    headers = [("host", "127.0.0.1:5678"), ("host", "rebound.example")]
    assert client_with().get("/v1/models", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/classify", {"origin": "http://evil.example"}, 403),
        ("POST", "/v1/classify", {"origin": "null"}, 403),
        ("POST", "/v1/classify", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/v1/models", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/v1/models", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("GET", "/samples/red_star.png", {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/v1/models", {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:5678"}, 200),
        ("GET", "/v1/models", {}, 200),
        ("GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ("GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
    ],
)
def test_requests_from_other_sites(method: str, path: str, headers: dict[str, str], status: int) -> None:
    assert client_with().request(method, path, headers=headers).status_code == status


@pytest.mark.parametrize("path", PATHS)
def test_every_response_has_the_security_headers(path: str) -> None:
    headers = client_with().get(path).headers
    for name, value in SECURITY_HEADERS.items():
        assert headers[name] == value
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_api_key_protects_the_api_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    monkeypatch.setattr(guards.hmac, "compare_digest", compare)
    client = client_with(api_key="s3cret-ключ")
    for path in ("/", "/static/main.js", "/healthz"):
        assert client.get(path).status_code == 200
    assert compared == []
    for path in ("/v1/models", "/metrics"):
        assert client.get(path).status_code == 401
        assert client.get(path, params={"api_key": "s3cret-ключ"}).status_code == 401
        for name, value, status in (
            ("authorization", "Bearer s3cret-ключ", 200),
            ("authorization", "bearer  s3cret-ключ", 200),
            ("x-api-key", "s3cret-ключ", 200),
            ("authorization", "Bearer s3cret", 401),
            ("authorization", "Basic s3cret-ключ", 401),
            ("authorization", "s3cret-ключ", 401),
            ("x-api-key", "", 401),
        ):
            answer = client.get(path, headers=[(name.encode(), value.encode())])
            assert answer.status_code == status, (name, value)
            if status == 401:
                error_of(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/metrics%0a").status_code == 401  # the router takes it for /metrics
    assert len(compared) == 2 * 9 + 1  # every comparison takes constant time


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),  # noqa: S104
     ("::", False), ("192.168.1.7", False), ("photos.example", False)],
)  # fmt: skip
def test_loopback_hosts(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback

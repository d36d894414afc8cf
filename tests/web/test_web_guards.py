"""Request guards: Host, Origin, API key, and security headers."""

import pytest
from starlette.testclient import TestClient
from support.web_server import BASE_URL, error_of

import siglip_onnx
from siglip_onnx.web import guards
from siglip_onnx.web.app import create_app
from siglip_onnx.web.guards import SECURITY_HEADERS, is_allowed_host, is_same_origin
from siglip_onnx.web.settings import Settings, is_loopback

PATHS = ("/", "/v1/models", "/static/main.js", "/samples/red_star.png", "/nothing", "/healthz", "/openapi.json")


def client_with(**settings: object) -> TestClient:
    app = create_app([siglip_onnx.load("demo")], Settings(**settings))  # type: ignore[arg-type]
    return TestClient(app, base_url=BASE_URL)


ANY = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("header", "bound_to"),
    [("127.0.0.1:5678", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("localhost:8080", "127.0.0.1"),
     ("LOCALHOST", "127.0.0.1"), ("[::1]:5678", "::1"), ("photos.example", "127.0.0.1"),
     ("Photos.Example:5678", "127.0.0.1"), ("192.168.1.7:5678", ANY)],
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
    assert len(compared) == 2 * 9  # every comparison takes constant time


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),  # noqa: S104
     ("::", False), ("192.168.1.7", False), ("photos.example", False)],
)  # fmt: skip
def test_loopback_hosts(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback

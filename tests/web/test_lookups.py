"""Slow name servers: other lookups and addresses are answered, and a request that ends takes no other with it."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
from support.waiting import wait_until

from siglip_onnx.web.lookups import Lookups, TooManyLookupsError


class SlowNames:
    """A resolver that answers for hosts of ``slow`` only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith(".slow"):
            self.answer.wait(30)
        if host.endswith(".none"):
            raise socket.gaierror("no such host")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))] * 2


def test_slow_lookups_delay_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    names, lookups = SlowNames(monkeypatch), Lookups(most=41)

    async def ask() -> None:
        slow = [asyncio.ensure_future(lookups.resolve(f"{number % 40}.slow", 80)) for number in range(120)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await lookups.resolve("example.com", 80) == ["93.184.216.34"]
        with pytest.raises(socket.gaierror):
            await lookups.resolve("x.none", 443)
        assert time.monotonic() - began < 5
        for task in slow[:100]:
            task.cancel()
        await asyncio.gather(*slow[:100], return_exceptions=True)
        names.answer.set()
        assert await asyncio.gather(*slow[100:]) == [["93.184.216.34"]] * 20

    asyncio.run(ask())
    assert len(names.asked) == 42
    wait_until(lambda: not lookups._running)  # the threads of lookups that nobody waits for end later


def test_requests_that_ended_do_not_count_against_others(monkeypatch: pytest.MonkeyPatch) -> None:
    names, lookups = SlowNames(monkeypatch), Lookups(most=2, most_abandoned=5)

    async def ask() -> None:
        for number in range(5):
            slow = asyncio.ensure_future(lookups.resolve(f"{number}.slow", 80))
            await asyncio.sleep(0.01)
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
            if number < 4:
                assert await lookups.resolve("example.com", 80) == ["93.184.216.34"]
        with pytest.raises(TooManyLookupsError, match="too many lookups"):
            await lookups.resolve("example.com", 80)
        again = asyncio.ensure_future(lookups.resolve("0.slow", 80))  # is not abandoned then
        await asyncio.sleep(0.01)
        assert await lookups.resolve("example.com", 80) == ["93.184.216.34"]
        names.answer.set()
        assert await again == ["93.184.216.34"]

    asyncio.run(ask())
    wait_until(lambda: not lookups._running)
    assert not lookups._waiting


def test_a_thread_that_cannot_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    SlowNames(monkeypatch)
    lookups = Lookups()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(TooManyLookupsError, match="no thread can be started"):
                await lookups.resolve("example.com", 80)
        return await lookups.resolve("example.com", 80)

    assert asyncio.run(ask()) == ["93.184.216.34"]


def test_too_many_lookups_are_refused_and_addresses_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names, lookups = SlowNames(monkeypatch), Lookups(most=3)

    async def ask() -> None:
        slow = [asyncio.ensure_future(lookups.resolve(f"{number}.slow", 80)) for number in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(OSError, match="too many lookups"):
            await lookups.resolve("example.com", 80)
        assert await lookups.resolve("93.184.216.34", 80) == ["93.184.216.34"]
        assert await lookups.resolve("2606:2800:220:1::1", 80) == ["2606:2800:220:1::1"]
        names.answer.set()
        await asyncio.gather(*slow)
        assert await lookups.resolve("example.com", 80) == ["93.184.216.34"]

    asyncio.run(ask())

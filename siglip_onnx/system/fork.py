"""Reset locks and sessions after a fork: a lock that another thread held would stay locked in the child forever."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

_after_fork: weakref.WeakKeyDictionary[object, list[Callable[[], None]]] = weakref.WeakKeyDictionary()


def renewed_lock(owner: object, attribute: str = "_lock") -> threading.Lock:
    """Return a lock to store as ``owner.<attribute>``; a forked child gets a new, free one there."""
    reference = weakref.ref(owner)

    def renew() -> None:
        alive = reference()
        if alive is not None:
            setattr(alive, attribute, threading.Lock())

    call_after_fork(owner, renew)
    return threading.Lock()


def weak_call(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls a bound method while its object is alive, without keeping it alive."""
    # A WeakMethod would do, but its callback fails while the interpreter ends.
    reference, function = weakref.ref(method.__self__), method.__func__  # type: ignore[attr-defined]

    def call() -> None:
        alive = reference()
        if alive is not None:
            function(alive)

    return call


def call_after_fork(owner: object, renew: Callable[[], None]) -> None:
    """Call ``renew`` in every forked child while ``owner`` is alive; ``renew`` must not refer to ``owner`` itself."""
    _after_fork.setdefault(owner, []).append(renew)


class OneProcess:
    """Keep a library out of forked children: its threads do not exist there, and its locks may be locked forever."""

    def __init__(self) -> None:
        """Watch for the first use, in whichever process that is."""
        self._process_id: int | None = None

    def is_usable(self) -> bool:
        """Return whether no parent of this process used the library before it forked; the caller will use it now."""
        if self._process_id is None:
            self._process_id = os.getpid()
        return self._process_id == os.getpid()


def _renew_all() -> None:
    for calls in list(_after_fork.values()):
        for renew in calls:
            renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)

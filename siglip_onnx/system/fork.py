"""Reset locks and sessions after a fork: threads do not exist in the child, and its locks may be held for ever."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

_after_fork: weakref.WeakKeyDictionary[object, list[Callable[[], None]]] = weakref.WeakKeyDictionary()


def renewed_lock(owner: object, attribute: str = "_lock") -> threading.Lock:
    """Return a lock for ``owner``, which gets a new one of that attribute in a child process."""
    reference = weakref.ref(owner)

    def renew() -> None:
        alive = reference()
        if alive is not None:
            setattr(alive, attribute, threading.Lock())

    call_after_fork(owner, renew)
    return threading.Lock()


def weak_call(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls a bound method as long as its object lives, without keeping it alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


def call_after_fork(owner: object, renew: Callable[[], None]) -> None:
    """Call ``renew`` in every child process, as long as ``owner`` lives; it must not hold on to it."""
    _after_fork.setdefault(owner, []).append(renew)


def _renew_all() -> None:
    for calls in list(_after_fork.values()):
        for renew in calls:
            renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)

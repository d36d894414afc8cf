"""HTTP/1.1 in bounded events: each costs the event loop 30 to 100 µs, so that very many small ones would stop it."""

from __future__ import annotations

import h11

FEW_CHUNKS = 1000  # of any size
MIN_CHUNK_BYTES = 512  # on average, of further chunks
MAX_INFORMATIONAL = 20  # responses of status 1xx before the final one


class BoundedConnection(h11.Connection):
    """An HTTP connection that refuses bodies in very many small chunks, and endless informational responses."""

    _chunks = _bytes = _informational = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: it is malformed, or a chunk or an informational response too many.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.InformationalResponse):
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise h11.RemoteProtocolError("too many informational responses")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FEW_CHUNKS + self._bytes // MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("too many small chunks")
        return event

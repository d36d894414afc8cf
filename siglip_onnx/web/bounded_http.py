"""HTTP/1.1 in bounded events: each costs the event loop 30 to 100 µs, so that very many small ones would stop it."""

from __future__ import annotations

import h11

FEW_CHUNKS = 1000  # of any size
# On average, of further chunks. Servers that send the lines of a file, as WSGI does, have about 256 in images.
MIN_CHUNK_BYTES = {h11.SERVER: 512, h11.CLIENT: 64}
MAX_INFORMATIONAL = 20  # responses of status 1xx before the final one


class TooManyEventsError(h11.RemoteProtocolError):
    """A body in very many small chunks, or too many informational responses."""


class BoundedConnection(h11.Connection):
    """An HTTP connection that refuses bodies in very many small chunks, and endless informational responses."""

    _chunks = _bytes = _informational = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event.

        Raises:
            TooManyEventsError: a chunk or an informational response too many.
            h11.RemoteProtocolError: it is malformed.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.InformationalResponse):
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise TooManyEventsError("too many informational responses")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FEW_CHUNKS + self._bytes // MIN_CHUNK_BYTES[self.our_role]:
                raise TooManyEventsError("too many small chunks")
        return event

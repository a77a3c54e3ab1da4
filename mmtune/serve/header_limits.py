"""Limits on the head of a request: uvicorn's fast parser (httptools) alone keeps any number of headers, for any time."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
HEAD_SECONDS = 15.0


class HeaderLimitProtocol(HttpToolsProtocol):
    """An HTTP/1.1 connection whose request line and headers take at most HEAD_BYTES and HEAD_SECONDS.

    Larger heads are answered with 400, slower ones by closing the connection. One read of the socket may exceed the size.
    Bodies have limits of their own (`body_limit`, `request`).
    """

    _timer: asyncio.TimerHandle | None = None
    _in_head, _head_bytes, _header_bytes = True, 0, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection opens: its first head is awaited."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes arrive: part of a request, or of several."""
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                return self.send_400_response(f"The head of a request is {HEAD_BYTES} bytes at most.")
            self._head_bytes += len(data)
            if self._timer is None:  # the next request of a kept connection begins
                self._start_timer()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The parser is at a request line."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the head, or a trailer behind a chunked body. An error becomes a 400."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEAD_BYTES:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete; the next bytes are another head."""
        self._in_head = True
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

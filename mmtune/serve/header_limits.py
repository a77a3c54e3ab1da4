"""Limit size and duration of request headers, because uvicorn's fast parser (httptools) has no such limits."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536  # for the request line and all headers together
HEAD_SECONDS = 15.0  # until the last header has arrived


class HeaderLimitProtocol(HttpToolsProtocol):
    """An HTTP/1.1 connection that limits the request line and headers to HEAD_BYTES and HEAD_SECONDS.

    If they are too large, the response is 400; if they are too slow, the connection is closed. A single read from the socket
    may exceed the size. Bodies are limited in `body_limit` and `request`.
    """

    _timer: asyncio.TimerHandle | None = None
    _in_head, _head_bytes, _header_bytes = True, 0, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when a connection opens. Starts the timer for the first request's headers."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is closed."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with bytes from the socket: part of one request, or of several."""
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                return self.send_400_response(f"The request line and headers may have at most {HEAD_BYTES} bytes.")
            self._head_bytes += len(data)
            if self._timer is None:  # the next request on a kept-alive connection begins
                self._start_timer()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Called when the parser has found a request line."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for each header, and each trailer after a chunked body. An exception becomes a 400 response."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEAD_BYTES:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called after the last header."""
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called at the end of a request. The next bytes are headers again."""
        self._in_head = True
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

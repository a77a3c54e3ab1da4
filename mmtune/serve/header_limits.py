"""The wire: uvicorn's fast parser (httptools) holds as many headers as a caller sends, for as long as he takes. Not here."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
HEAD_SECONDS = 15.0


class Wire(HttpToolsProtocol):
    """A request's first line and headers are HEAD_BYTES at most (and what one read of the socket brings) and arrive within
    HEAD_SECONDS; else 400, or the line goes dead. Bodies have limits of their own (`size`, `asked`)."""

    _timer: asyncio.TimerHandle | None = None
    _in_head, _head, _headers = True, 0, 0

    def connection_made(self, transport: Any) -> None:
        """A caller is there; his request had better come."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """He is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request, of several, or of none."""
        if self._in_head:
            if self._head > HEAD_BYTES:
                return self.send_400_response(f"The head of a request is {HEAD_BYTES} bytes at most.")
            self._head += len(data)
            if self._timer is None:  # the next request of a kept connection begins
                self._wait()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The first line begins."""
        self._headers = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the head's, or of those that may follow a body in pieces. An error is a 400."""
        self._headers += len(name) + len(value)
        if self._headers > HEAD_BYTES:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._head = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_head = True
        super().on_message_complete()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

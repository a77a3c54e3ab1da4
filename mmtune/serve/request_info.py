"""What is known about the request in progress: its id, the client, and the error code, for logs and limits."""

import contextvars
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.serve.client_address import Network, client_address
from mmtune.serve.token_file import Identity

if TYPE_CHECKING:
    from starlette.types import Scope

KEY = "mmtune.request"
current_request: "contextvars.ContextVar[RequestInfo | None]" = contextvars.ContextVar("mmtune_request", default=None)
"""The request that this task or thread works on; None outside of requests, and in the thread that runs batches."""


@dataclass
class RequestInfo:
    """One request.

    id: of the header X-Request-Id, or a new one; it is in the response and in every log line about the request
    address: of the client
    identity: who sent it; None before the token was checked, or if it was refused
    code: code of the error of the response; empty if there was none
    """

    id: str
    address: str
    identity: Identity | None = None
    code: str = ""


def request_info(scope: "Scope", proxies: tuple[Network, ...] = ()) -> RequestInfo:
    """Return the information about the request of an ASGI scope, which is made at the first call."""
    info = scope.get(KEY)
    if not isinstance(info, RequestInfo):
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        id = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given) else uuid.uuid4().hex
        info = scope[KEY] = RequestInfo(id, client_address(scope, proxies))
    return info

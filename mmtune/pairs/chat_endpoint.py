"""A client of OpenAI-compatible endpoints (`/chat/completions`): rate-limited, retried with back-off, and careful with the key."""

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import httpx

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first retry, and at most. Each pause is twice the one before, and up to a quarter longer by chance."""
MAX_ANSWER = 4_000_000
"""Bytes of an answer; a longer one is no answer of a chat endpoint."""


class NoAnswer(Exception):
    """One request got no usable answer. The message is the reason, the same for all requests that failed for it."""


@dataclass(frozen=True)
class Answer:
    """An answer. prompt_tokens, completion_tokens: as the endpoint counts them; None if it does not."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def public_address(url: str) -> str:
    """A URL without user, password, query and fragment, for files and messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass
class ChatEndpoint:
    """An endpoint and its model.

    url: the base URL, such as https://api.openai.com/v1; /chat/completions is added
    model: the model that the endpoint runs
    key_variable: environment variable with the API key; without it requests have none, as local servers take them
    per_minute: requests that are started in a minute; 0 means no limit
    timeout: seconds to wait for an answer
    retries: further attempts after a timeout, a broken connection, a rate limit or a fault of the server
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    per_minute: float = 0.0
    timeout: float = 60.0
    retries: int = 5
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next_start: float = field(default=0.0, repr=False)
    _client: "httpx.Client | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise DataError(f"--endpoint {self.url}: give a base URL such as https://api.openai.com/v1")

    def __enter__(self) -> "ChatEndpoint":
        try:
            import httpx
        except ModuleNotFoundError:
            raise MissingExtra('generating pairs needs httpx: pip install "mmtune[pairs]"') from None
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=self.timeout, headers=headers, follow_redirects=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    @property
    def address(self) -> str:
        """The URL for files and messages."""
        return public_address(self.url)

    def body(self, parts: Sequence[JsonObject], max_tokens: int, temperature: float) -> JsonObject:
        """The body of a request with one message. parts: what it consists of, see `Modality.chat_part`."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": list(parts)}],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }

    def ask(self, body: JsonObject) -> Answer:
        """Send a request and return the answer. Several threads may ask at once.

        Raises NoAnswer if this request fails for good, and DataError if all would, e.g. for a wrong key.
        """
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                self._sleep(pause * (1 + random.random() / 4))
            self._wait_for_turn()
            answer, reason = self._once(body)
            if answer is not None:
                return answer
        raise NoAnswer(f"{reason} ({self.retries + 1} attempts)" if self.retries else reason)

    def _once(self, body: JsonObject) -> tuple[Answer | None, str]:
        """One attempt. Returns (answer, "") or (None, why it should be tried again). Raises as `ask` does."""
        import httpx

        assert self._client is not None, "use the endpoint in a `with` block"
        try:
            response = self._client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            return None, f"no answer within {self.timeout:g} s"
        except httpx.TransportError as e:
            return None, f"connection failed ({type(e).__name__})"
        if response.status_code in RETRIED:
            self._obey(response.headers.get("retry-after"))
            return None, f"HTTP {response.status_code}"
        if response.status_code in (401, 403):
            state = "is not set" if not self._key() else "is not accepted"
            raise DataError(f"{self.address}: HTTP {response.status_code}; the key in ${self.key_variable} {state}")
        if response.status_code in (301, 302, 307, 308, 404, 405):
            raise DataError(
                f"{self.address}: HTTP {response.status_code}: no /chat/completions there, or no model {self.model!r}"
            )
        if response.status_code != 200:
            raise NoAnswer(f"HTTP {response.status_code}: {self._said(response)}")
        answer = _answer(response)
        return answer, "" if answer is not None else "an answer that is not of the protocol"

    def _said(self, response: "httpx.Response") -> str:
        """The message of an error, short, in one line, and without the key, which some endpoints repeat."""
        try:
            error = response.json()["error"]
            said = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            said = response.text
        key = self._key()
        said = said.replace(key, "***") if key else said
        return " ".join(said.split())[:200]

    def _obey(self, retry_after: str | None) -> None:
        """Let no request start before the time that the endpoint asks for."""
        try:
            seconds = min(float(retry_after or 0), LONGEST_PAUSE)
        except ValueError:  # a date; the back-off is long enough
            return
        with self._lock:
            self._next_start = max(self._next_start, time.monotonic() + seconds)

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(self._next_start, now)
            self._next_start = start + (60.0 / self.per_minute if self.per_minute else 0.0)
        self._sleep(start - now)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


def _answer(response: "httpx.Response") -> Answer | None:
    """The answer in a response, or None if it is not one of the protocol."""
    if len(response.content) > MAX_ANSWER:
        return None
    try:
        document = response.json()
        text = document["choices"][0]["message"]["content"]
        usage: Mapping[str, object] = document.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    return Answer(text, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")) if isinstance(text, str) else None


def _count(usage: Mapping[str, object], name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else None

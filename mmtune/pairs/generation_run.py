"""Ask an endpoint for texts about items: from the cache where possible, several requests at once, with counts of tokens and costs."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, Rejected
from mmtune.pairs.answer_cache import AnswerCache
from mmtune.pairs.chat_endpoint import Answer, ChatEndpoint, NoAnswer
from mmtune.pairs.text_lists import texts_by_number, texts_of
from mmtune.runtime.progress import Progress

CHARACTERS_PER_TOKEN = 4
MEDIA_TOKENS = 800
"""Tokens of a picture or a sound, for the estimate only: between those of a small and of a large picture."""
TOKENS_PER_TEXT = 20
UNUSABLE = "an answer that is no list of texts"
FAILURES = 8
"""Requests that fail in a row, without a single answer in between, before a run stops: the endpoint is down."""


@dataclass(frozen=True)
class Prices:
    """Dollars (or another currency) for a million tokens; None if unknown."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The price of so many tokens, or None if a price is unknown."""
        if self.prompt is None or self.completion is None:
            return None
        return round((prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6, 6)


@dataclass
class Usage:
    """What was, or will be, used. estimated: whether token counts are (in part) estimated from characters."""

    requests: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    def to_dict(self, prices: Prices) -> JsonObject:
        """The counts, and their cost if the prices are known."""
        cost = prices.cost(self.prompt_tokens, self.completion_tokens)
        return {**self.__dict__, **({"cost": cost} if cost is not None else {})}

    def line(self, prices: Prices) -> str:
        """The counts in words."""
        cost = prices.cost(self.prompt_tokens, self.completion_tokens)
        price = f", {cost:.4f} at the given prices" if cost is not None else ""
        about = "about " if self.estimated else ""
        return (
            f"{self.requests:,} requests ({self.from_cache:,} further answers are in the cache), {about}{self.prompt_tokens:,} prompt "
            f"and {self.completion_tokens:,} completion tokens{price}"
        )


@dataclass(frozen=True)
class Request:
    """A request about one item.

    item: number of the item
    body: makes the body of the request; it is called in a thread. Raises Rejected if the item's value cannot be decoded
    """

    item: int
    body: Callable[[], JsonObject]


def prompt_tokens(body: JsonObject) -> int:
    """An estimate of the tokens of a request: a quarter of its characters, and MEDIA_TOKENS for each value that is not text."""
    parts = body["messages"][0]["content"]
    kinds = [part.get("type") for part in parts]
    own = [str(part[kind]) for part, kind in zip(parts, kinds, strict=True) if isinstance(part.get(kind), str)]
    return sum(map(len, own)) // CHARACTERS_PER_TOKEN + MEDIA_TOKENS * (len(parts) - len(own))


def estimate(requests: Iterable[Request], cache: AnswerCache, per_item: int, items_per_request: int = 1) -> Usage:
    """What the requests that have no answer in the cache will use. Every body is made once; those that cannot be made do not count.

    The prompt tokens are those of one request an item, which is a little too much if `items_per_request` is above 1.
    """
    usage = Usage(estimated=True)
    for request in requests:
        try:
            body = request.body()
        except Rejected:
            continue
        if cache.get(body) is not None:
            usage.from_cache += 1
            continue
        usage.requests += 1
        usage.prompt_tokens += prompt_tokens(body)
        usage.completion_tokens += per_item * TOKENS_PER_TEXT
    usage.requests = -(-usage.requests // items_per_request)
    return usage


@dataclass
class GenerationRun:
    """Sends requests and reads the answers.

    concurrency: requests at once
    budget: cost after which no further request is sent; None means no limit
    items_per_request: items that one request asks about. Answers are kept by item, so that another number reads the same answers
    joint: makes the body of a request about several items; needed if `items_per_request` is above 1
    used: what this run has used; counted by `answers`
    """

    endpoint: ChatEndpoint
    cache: AnswerCache
    prices: Prices
    concurrency: int = 4
    budget: float | None = None
    items_per_request: int = 1
    joint: Callable[[Sequence[int]], JsonObject] | None = None
    used: Usage = field(default_factory=Usage)
    _failed_in_row: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answers(self, requests: Iterable[Request], progress: Progress) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (item, its texts, or the reason why there are none) in the order of the requests.

        Raises DataError if the endpoint refuses or is down, or if the budget is used; the answers so far are in the cache.
        """
        remaining = iter(requests)
        size = self.items_per_request
        with ThreadPoolExecutor(self.concurrency) as pool:
            while chunk := list(islice(remaining, 4 * self.concurrency * size)):
                found = dict(zip((r.item for r in chunk), pool.map(self._known, chunk), strict=True))
                unknown = [r for r in chunk if found[r.item] is None]
                batches = [unknown[n : n + size] for n in range(0, len(unknown), size)]
                progress.advance(len(chunk) - len(unknown))
                for batch, texts in zip(batches, pool.map(self._asked, batches), strict=True):
                    progress.advance(len(batch))
                    found.update(zip((r.item for r in batch), texts, strict=True))
                for request in chunk:
                    yield request.item, found[request.item] or UNUSABLE

    def _known(self, request: Request) -> list[str] | str | None:
        """The texts of an item from the cache, the reason why it cannot be asked about, or None if it has to be asked about."""
        try:
            answer = self.cache.get(request.body())
        except Rejected as e:
            return f"its value cannot be sent: {e}"
        if answer is None:
            return None
        with self._lock:
            self.used.from_cache += 1
        return texts_of(answer.text)

    def _asked(self, batch: Sequence[Request]) -> list[list[str] | str]:
        """The texts of each item of a batch. Items that a joint answer does not have are asked about one by one."""
        if len(batch) == 1 or self.joint is None:
            return [self._alone(request) for request in batch]
        try:
            by_number = texts_by_number(self._ask(self.joint([r.item for r in batch])).text, len(batch))
        except NoAnswer:
            by_number = {}
        found: list[list[str] | str] = []
        for number, request in enumerate(batch, start=1):
            if texts := by_number.get(number):
                self.cache.put(request.body(), Answer(json.dumps(texts), None, None))
            found.append(texts or self._alone(request))
        return found

    def _alone(self, request: Request) -> list[str] | str:
        """The texts of one item, or the reason why there are none."""
        body = request.body()
        try:
            answer = self._ask(body)
        except NoAnswer as e:
            return str(e)
        texts = texts_of(answer.text)
        if texts:  # nonsense is not kept, so that it is asked again
            self.cache.put(body, answer)
        return texts or UNUSABLE

    def _ask(self, body: JsonObject) -> Answer:
        with self._lock:
            cost = self.prices.cost(self.used.prompt_tokens, self.used.completion_tokens)
            if self.budget is not None and cost is not None and cost >= self.budget:
                raise DataError(f"the budget of {self.budget:g} is used; all answers are in the cache: raise --budget to go on")
            if self._failed_in_row >= FAILURES:
                raise NoAnswer("not sent, because the endpoint is down")
        try:
            answer = self.endpoint.ask(body)
        except NoAnswer as e:
            with self._lock:
                self._failed_in_row += 1
                down = self._failed_in_row >= FAILURES
            if down:
                raise DataError(
                    f"{self.endpoint.address}: {FAILURES} requests in a row failed: {e}; run the command again later"
                ) from None
            raise
        with self._lock:
            self._failed_in_row = 0
            self.used.requests += 1
            self.used.estimated |= answer.prompt_tokens is None or answer.completion_tokens is None
            counted = answer.prompt_tokens
            self.used.prompt_tokens += prompt_tokens(body) if counted is None else counted
            counted = answer.completion_tokens
            self.used.completion_tokens += len(answer.text) // CHARACTERS_PER_TOKEN if counted is None else counted
        return answer

"""A soak of a running server: clients that know what must be there, outages of the database and a full disk meanwhile."""

import contextlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from mmtune.errors import StoreUnavailable
from mmtune.index.collection import Collection
from tests.support.serve_helpers import BEARER

WORDS = "red green blue white black round square tall small old new wet dry loud soft warm cold".split()
DOCUMENTED = {
    404: {"no_item"},
    409: {"conflict"},
    429: {"too_many", "rate_limited"},
    503: {"store_unavailable", "storage", "not_open"},
    507: {"disk_full"},
}
"""{status: codes of the error} that docs/operating.md and the API name for what happens in a soak."""
ITEMS = 12
"""Most items of one client."""
LARGE = 400_000
"""Characters of metadata in a write while the disk is full: small writes find space in files that are already large enough."""


@dataclass
class Report:
    """What the clients saw. seconds: of all answered searches and writes. large_writes: set while writes must need space."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    searches: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    large_writes: threading.Event = field(default_factory=threading.Event)


class Client:
    """Writes and searches items of its own, so that it knows what every answer must be.

    certain: {id: caption, or None if it is deleted}, where a write was answered without a version left behind.
    unsure: ids whose last write failed, or left a version behind.
    """

    def __init__(self, url: str, number: int, report: Report, lock: threading.Lock, pause: float):
        self.web = httpx.Client(base_url=url, headers=BEARER, timeout=120)
        self.name, self.report, self.lock, self.pause = f"c{number:02d}", report, lock, pause
        self.rng, self.made = random.Random(number), 0
        self.certain: dict[str, str | None] = {}
        self.unsure: dict[str, set[str | None]] = {}

    def run(self, stop: threading.Event) -> None:
        with contextlib.closing(self.web):
            while not stop.is_set():
                try:
                    self.turn()
                except httpx.HTTPError as e:  # the server itself is never away
                    self.wrong(f"no answer: {type(e).__name__}: {e}")
                stop.wait(self.rng.uniform(0, 2 * self.pause))

    def wrong(self, line: str) -> None:
        with self.lock:
            self.report.wrong.append(f"{self.name}: {line}")

    def turn(self) -> None:
        draw = self.rng.random()
        if draw < 0.6 and self.certain:
            self.search()
        elif draw < 0.9 or len(self.certain) < 3:
            self.put()
        else:
            self.delete()

    def send(self, method: str, path: str, took: list[float], **body) -> httpx.Response:
        begin = time.perf_counter()
        answer = self.web.request(method, path, **body)
        code = answer.json().get("error", {}).get("code") if answer.status_code >= 400 else ""
        with self.lock:
            took.append(time.perf_counter() - begin)
            self.report.statuses[f"{answer.status_code} {code}".strip()] += 1
        if answer.status_code >= 400 and code not in DOCUMENTED.get(answer.status_code, ()):
            self.wrong(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer

    def put(self) -> None:
        known = sorted({*self.certain, *self.unsure})
        self.made += 1
        id = (
            self.rng.choice(known) if len(known) >= ITEMS or (known and self.rng.random() < 0.4) else f"{self.name}-{self.made}"
        )
        caption = f"{self.name} {self.made} {' '.join(self.rng.sample(WORDS, 4))}"
        meta = {"owner": self.name, "note": "-" * (LARGE if self.report.large_writes.is_set() else 0)}
        with self.unsure_without_answer(id, caption):
            answer = self.send("PUT", f"/items/{id}", self.report.writes, json={"text": caption, "meta": meta})
        self.wrote(id, caption, answer)

    def delete(self) -> None:
        id = self.rng.choice(sorted({*self.certain, *self.unsure}))
        with self.unsure_without_answer(id, None):
            answer = self.send("DELETE", f"/items/{id}", self.report.writes)
        if answer.status_code == 404 and self.certain.get(id) is not None:
            self.wrong(f"{id} is lost: DELETE says 404")
        if answer.status_code != 404:
            self.wrote(id, None, answer)

    @contextlib.contextmanager
    def unsure_without_answer(self, id: str, caption: str | None) -> Iterator[None]:
        """A write without an answer, which is a fault by itself, may have been done or not, or be done later."""
        try:
            yield
        except httpx.HTTPError:
            self.unsure[id] = self.unsure.pop(id, {self.certain.pop(id, None)}) | {caption}
            raise

    def wrote(self, id: str, caption: str | None, answer: httpx.Response) -> None:
        if answer.is_success and not answer.json()["behind"]:
            # this write also brought every version up to date with the catalog, which had all earlier answered writes
            for other, states in list(self.unsure.items()):
                if len(states) == 1 and other != id:
                    self.certain[other] = states.pop()
                    del self.unsure[other]
            self.certain[id] = caption
            self.unsure.pop(id, None)
            return
        before = self.unsure.pop(id, {self.certain.pop(id, None)})
        # a success that left a version behind has changed the catalog; a refusal may or may not have
        self.unsure[id] = {caption} if answer.is_success else before | {caption}

    def search(self) -> None:
        present = {i: c for i, c in self.certain.items() if c is not None}
        if not present:
            return
        id = self.rng.choice(sorted(present))
        body = {"text": present[id], "k": 100, "filter": f"owner = '{self.name}'"}
        answer = self.send("POST", "/search", self.report.searches, json=body)
        if not answer.is_success:
            return
        document = answer.json()
        got = [r["id"] for r in document["results"]]
        with self.lock:
            self.report.versions[document["version"]] += 1
            self.report.checked += 1
        if len(set(got)) != len(got):
            self.wrong(f"doubled in {document['version']}: {got}")
        elif set(got) - set(self.unsure) != set(present):
            self.wrong(
                f"{document['version']}: {sorted(set(got) ^ set(present))} are lost or still there; unsure {self.unsure}"
            )
        elif got[0] != id and got[0] not in self.unsure or (got[0] == id and document["results"][0]["score"] < 0.999):
            self.wrong(f"{document['version']}: the caption of {id} finds {document['results'][0]}")


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[bool]:
    """Mount a disk in memory at `path`, if this process may; yields whether it could."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with open(path, "wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"\0" * 65536):
            pass


def switch(path: Path, stop: threading.Event, pause: float, moves: Counter[str], wrong: list[str]) -> None:
    """Promote the other version and roll back, in turn, in this process, as the command line does it in its own."""
    coll = Collection(path)
    with contextlib.closing(coll):
        while not stop.wait(pause):
            try:
                if coll.layout.live()["version"] == "v1":
                    outcome = coll.promote("v2", force=True, why="soak")
                    moves["promoted" if outcome.promoted else "refused"] += 1
                    if not outcome.promoted and not _is_outage(" ".join(outcome.reasons)):
                        wrong.append(f"promote: {outcome.reasons}")
                else:
                    coll.rollback("soak")
                    moves["rolled back"] += 1
            except (StoreUnavailable, OSError) as e:
                moves[type(e).__name__] += 1
            except Exception as e:
                moves[type(e).__name__] += 1
                if not _is_outage(str(e)):
                    wrong.append(f"switch: {type(e).__name__}: {e}")


def _is_outage(line: str) -> bool:
    """Whether the database or the disk was away; libraries say it in their own words."""
    words = ("connection", "server closed", "No space left", "disk is full", "starting up", "shutting down", "terminating")
    return any(w in line for w in words)


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values are; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

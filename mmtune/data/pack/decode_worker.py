"""The program of a worker process of DecodePool: it reads files and decodes values. The parent process does not import it.

Parent and worker exchange messages over a socket:
1. The parent sends the settings (JSON). The worker answers {"ready": true}, or {"fatal": reason} if it cannot start.
2. For each batch, the parent sends a JSON list of rows. A row is a list of values: [modality, path], or [modality, null] if the
   parent sends the bytes of the value. These bytes follow in the same order, one message each.
3. The worker answers row by row. For a good row it sends {"reason": null, "stamp", "reencoded"}, then the bytes that it read from
   paths, one message each. For a rejected row it sends {"reason", "modality"}.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TypedDict

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.remote.remote_files import read_limited
from mmtune.data.remote.request_failures import GaveUp, describe, is_missing
from mmtune.errors import MissingExtra, Rejected
from mmtune.runtime.pillow_warnings import ignore_pillow_warnings

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The memory address in the repr of an object. It is removed from reasons, so that packing a source twice gives equal files."""
PARALLEL_FETCHES = 8
"""Number of URLs that a worker process fetches at the same time, of the rows of a batch."""
MEMORY = 8 << 30
"""Limit on a worker's address space in bytes. With it, a decompression bomb raises MemoryError and only its row is rejected."""


class WorkerSettings(TypedDict):
    """The first message from the parent.

    table: modality -> import path of its class
    used: modalities to load
    options: modality -> its limits
    max_bytes: maximum size of one value
    """

    table: dict[str, str]
    used: list[str]
    options: dict[str, JsonObject]
    max_bytes: int


class Answer(TypedDict, total=False):
    """The answer for one row.

    reason: why the row is rejected; None for a good row
    modality: for a rejected row, the modality of the value that `reason` is about
    stamp: for a good row, size and modification time of its files
    reencoded: for a good row, modality -> description of a change of its bytes (see `Modality.reencode`)
    """

    reason: str | None
    modality: str
    stamp: str
    reencoded: dict[str, str]


def main(fd: int) -> None:
    """Check the rows that arrive through the socket with the file descriptor `fd`, until the parent closes the socket."""
    ignore_pillow_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to workers, too, but only the parent handles it
    with contextlib.suppress(OSError, AttributeError):
        # PR_SET_PDEATHSIG (Linux): the kernel kills this process when its parent ends, even while it decodes a value
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with Connection(fd) as connection, contextlib.suppress(EOFError, ConnectionError):
        settings = json.loads(connection.recv_bytes())
        try:
            modalities.TABLE.clear()
            modalities.TABLE.update(settings["table"])
            for name in settings["used"]:
                modalities.get(name)
        except Exception as e:
            connection.send_bytes(json.dumps({"fatal": f"{type(e).__name__}: {e}"}).encode())
            return
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        connection.send_bytes(b'{"ready": true}')
        while True:
            rows = json.loads(connection.recv_bytes())
            given_rows = [[connection.recv_bytes() if path is None else None for _, path in values] for values in rows]
            with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
                fetched = fetch_ahead(pool, rows, settings["max_bytes"])
                for values, given in zip(rows, given_rows, strict=True):
                    answer, payload = _check_row(values, given, settings, fetched)
                    connection.send_bytes(json.dumps(answer).encode())
                    for data in payload:
                        connection.send_bytes(data)


def fetch_ahead(pool: ThreadPoolExecutor, rows: list[list[tuple[str, str | None]]], limit: int) -> dict[str, Future[bytes]]:
    """Start to fetch the URLs of all values of a batch, in parallel, in the order in which they are needed."""
    urls = dict.fromkeys(path for values in rows for _, path in values if path is not None and "://" in path)
    return {url: pool.submit(_fetch, url, limit) for url in urls}


def _check_row(
    values: list[tuple[str, str | None]], given: list[bytes | None], settings: WorkerSettings, fetched: dict[str, Future[bytes]]
) -> tuple[Answer, list[bytes]]:
    """Read and check the values of one row. Returns the answer and the bytes read from paths, which are empty for a rejected row.

    values: (modality, path or None) of each value
    given: for each value its bytes, or None if they are to be read from the path
    fetched: the content of the URLs among the paths
    """
    payload, stamps, reencoded = [], [], dict[str, str]()
    reason = None
    for (name, path), data in zip(values, given, strict=True):
        try:
            if path is not None:
                data, stamp = read_file(path, settings["max_bytes"], fetched)
                data, changed = modalities.get(name).reencode(data)
                reencoded |= {name: changed} if changed else {}
                payload.append(data)
                stamps.append(stamp)
            assert data is not None
            if not data:
                raise Rejected("empty file" if path else "empty")
            if len(data) > settings["max_bytes"]:
                raise Rejected(f"too large: {len(data)} bytes, limit {settings['max_bytes']} (--max-bytes)")
            modalities.get(name).check(data, **settings["options"].get(name, {}))
        except Rejected as e:
            reason = str(e)
        except Exception as e:  # decoders should raise Rejected only; any other exception rejects the row, too
            reason = f"cannot be decoded: {type(e).__name__}: {str(e)[:200]}"
        if reason:
            return {"reason": ADDRESS.sub("", reason), "modality": name}, []
    return {"reason": None, "stamp": ",".join(stamps), "reencoded": reencoded}, payload


def read_file(path: str, limit: int, fetched: Mapping[str, Future[bytes]] = {}) -> tuple[bytes, str]:
    """Read a regular file or URL. Returns its bytes and its stamp (size and modification time, or "url").

    fetched: the content of URLs that were fetched ahead

    Raises Rejected if the file is missing, is not a regular file, cannot be read, or is larger than `limit` bytes.
    """
    try:
        if "://" in path:
            with contextlib.suppress(MemoryError):  # several large files at a time; fetch this one alone
                if path in fetched:
                    return fetched[path].result(), "url"
            return _fetch(path, limit), "url"
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):  # reading a pipe or a device might never end
            raise Rejected("not a file" if not stat.S_ISDIR(info.st_mode) else "not a file but a folder")
        if info.st_size > limit:
            raise Rejected(f"too large: {info.st_size} bytes, limit {limit} (--max-bytes)")
        with open(path, "rb") as f:
            info = os.fstat(f.fileno())
            return f.read(info.st_size + 1), f"{info.st_size}:{info.st_mtime_ns}"
    except FileNotFoundError:
        raise Rejected("missing file") from None
    except OSError as e:
        raise Rejected(f"cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise Rejected(f"not a path: {e}") from None


def _fetch(url: str, limit: int) -> bytes:
    try:
        return read_limited(url, limit)
    except MissingExtra as e:
        raise Rejected(str(e)) from None
    except MemoryError:
        raise
    except Exception as e:  # the libraries behind fsspec raise all kinds of exceptions
        if is_missing(e):
            raise FileNotFoundError(url) from None
        cause = (
            e.__cause__ if isinstance(e, GaveUp) and e.__cause__ else e
        )  # without the seconds, so that packing twice gives equal files
        raise Rejected(f"cannot be fetched: {describe(cause, url)}") from None


if __name__ == "__main__":
    main(int(sys.argv[1]))

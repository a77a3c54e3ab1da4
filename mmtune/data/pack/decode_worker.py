"""A worker process of DecodePool: reads files and decodes values; a value may crash it. Never imported by its parent.

One socket; every message is bytes. First the settings (JSON), answered by {"ready": true} or {"fatal": reason}. Then for each
batch: a JSON list of rows, each a list of values [modality, path] or [modality, null], followed by the bytes of the latter, in
order. The answers come row by row: {"reason": null, "stamp", "reencoded"} and the bytes read from paths, in order, or {"reason", "modality"}
without bytes.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import stat
import sys
from multiprocessing.connection import Connection
from typing import TypedDict

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import Rejected

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""An object's address, as in its repr: another one each time, while two packs of one source are to be the same."""
MEMORY = 8 << 30
"""Address space of a worker: a decompression bomb is a MemoryError in one row, not a machine out of memory."""


class WorkerSettings(TypedDict):
    """table: modality -> class; used: the modalities to load; options: modality -> limits; max_bytes: of one value."""

    table: dict[str, str]
    used: list[str]
    options: dict[str, JsonObject]
    max_bytes: int


class Answer(TypedDict, total=False):
    """reason and modality of a rejected row; reason None, the stamp of its files and modality -> what was changed in its bytes for a
    good one."""

    reason: str | None
    modality: str
    stamp: str
    reencoded: dict[str, str]


def main(fd: int) -> None:
    """Check rows that come through the socket `fd` until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: die with the parent even in the middle of a decode
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
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        connection.send_bytes(b'{"ready": true}')
        while True:
            rows = json.loads(connection.recv_bytes())
            given_rows = [[connection.recv_bytes() if path is None else None for _, path in values] for values in rows]
            for values, given in zip(rows, given_rows, strict=True):
                answer, payload = _check_row(values, given, settings)
                connection.send_bytes(json.dumps(answer).encode())
                for data in payload:
                    connection.send_bytes(data)


def _check_row(
    values: list[tuple[str, str | None]], given: list[bytes | None], settings: WorkerSettings
) -> tuple[Answer, list[bytes]]:
    """Read and check one row's values; (answer, the bytes read from paths). A rejected row sends no bytes back."""
    payload, stamps, reencoded = [], [], dict[str, str]()
    reason = None
    for (name, path), data in zip(values, given, strict=True):
        try:
            if path is not None:
                data, stamp = read_file(path, settings["max_bytes"])
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
        except Exception as e:  # a decoder that raises what it should not costs one row
            reason = f"cannot be decoded: {type(e).__name__}: {str(e)[:200]}"
        if reason:
            return {"reason": ADDRESS.sub("", reason), "modality": name}, []
    return {"reason": None, "stamp": ",".join(stamps), "reencoded": reencoded}, payload


def read_file(path: str, limit: int) -> tuple[bytes, str]:
    """(bytes, stamp) of a regular file or URL; raises Rejected for one that is missing, not a file, unreadable, or over the limit."""
    try:
        if "://" in path:
            return _fetch(path, limit), "url"
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):  # a pipe or a device would never end
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
    import fsspec

    try:
        with fsspec.open(url, "rb") as f:
            return f.read(limit + 1)
    except FileNotFoundError:
        raise
    except Exception as e:  # any protocol, any library: whatever it raises is the reason of this row
        raise Rejected(f"cannot be fetched: {type(e).__name__}: {str(e)[:200]}") from None


if __name__ == "__main__":
    main(int(sys.argv[1]))

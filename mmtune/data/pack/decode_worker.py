"""The child side of checking: reads files, decodes values, and may die of it. Never imported by its parent.

One socket; every message is bytes. First the settings (JSON), answered by {"ready": true} or {"fatal": reason}. Then per
batch: a JSON list of rows, each [modality, path] or [modality, null] per value, and the bytes of the latter in
order; answered row by row, as they are done: {"reason": null, "stamp"} and the bytes read from paths, in order, or
{"reason", "modality"} and no bytes.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import sys
from multiprocessing.connection import Connection
from typing import Any

from mmtune import modalities
from mmtune.errors import Rejected

MEMORY = 8 << 30
"""Address space a checker may use: a bomb then is a MemoryError in one row, not a machine out of memory."""


def main(fd: int) -> None:
    """Serve checks on the socket `fd` until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: die with the parent even in the middle of a decode
    with Connection(fd) as wire, contextlib.suppress(EOFError, ConnectionError):
        settings = json.loads(wire.recv_bytes())
        try:
            modalities.TABLE.clear()
            modalities.TABLE.update(settings["table"])
            for name in settings["used"]:
                modalities.get(name)
        except Exception as e:
            wire.send_bytes(json.dumps({"fatal": f"{type(e).__name__}: {e}"}).encode())
            return
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        wire.send_bytes(b'{"ready": true}')
        while True:
            rows = json.loads(wire.recv_bytes())
            inline = [[wire.recv_bytes() if path is None else None for _, path in values] for values in rows]
            for values, given in zip(rows, inline, strict=True):
                answer, payload = _row(values, given, settings)
                wire.send_bytes(json.dumps(answer).encode())
                for data in payload:
                    wire.send_bytes(data)


def _row(values: list[Any], given: list[bytes | None], settings: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Check one row's values; (answer, the bytes that were read). A rejected row sends no bytes back."""
    payload, stamps = [], []
    reason = None
    for (name, path), data in zip(values, given, strict=True):
        try:
            if path is not None:
                data, mark = read(path, settings["max_bytes"])
                payload.append(data)
                stamps.append(mark)
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
            return {"reason": reason, "modality": name}, []
    return {"reason": None, "stamp": ",".join(stamps)}, payload


def read(path: str, limit: int) -> tuple[bytes, str]:
    """(bytes, stamp) of a regular file or URL; raises Rejected for what is missing, no file, unreadable, or over the limit."""
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
    except Exception as e:  # any protocol, any library: whatever it raises is this row's reason
        raise Rejected(f"cannot be fetched: {type(e).__name__}: {str(e)[:200]}") from None


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Clients of a server, in a process of their own: python -m tests.benchmarks.http_load URL CLIENTS SECONDS text|image SALT

Each keeps its connection and asks again as soon as it is answered; no two ask the same, so that nothing comes from a cache.
Prints {"asked", "per_second", "p50_ms", "p95_ms"}.
"""

import asyncio
import io
import itertools
import json
import sys
import time
import zlib

import numpy as np
import PIL.Image


def words(salt: str, number: int) -> tuple[str, bytes]:
    """(content type, body) of a search by words."""
    return "application/json", json.dumps({"text": f"a red square {salt} {number}", "k": 10}).encode()


def pictures(salt: str, count: int) -> list[tuple[str, bytes]]:
    """(content type, body) of searches by 224 x 224 JPEGs, made before the clock starts."""
    rng = np.random.default_rng(zlib.crc32(salt.encode()))
    small = PIL.Image.fromarray(rng.integers(0, 255, (14, 14, 3), np.uint8))
    base, out = np.asarray(small.resize((224, 224))), []
    for number in range(count):
        pixels, data = base.copy(), io.BytesIO()
        pixels[:32, :32] = rng.integers(0, 255, 3, np.uint8)
        pixels[40 + number % 180, number // 180 % 224] = 7
        PIL.Image.fromarray(pixels).save(data, "JPEG", quality=85)
        head = b'--xx\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        out.append(("multipart/form-data; boundary=xx", head + data.getvalue() + b"\r\n--xx--\r\n"))
    return out


async def drive(url: str, clients: int, seconds: float, kind: str, salt: str) -> dict[str, float]:
    """The figures. AssertionError for an answer that is not 200."""
    host, port = url.removeprefix("http://").split(":")
    made = pictures(salt, int(400 * seconds) + 400) if kind == "image" else None
    numbers, took = itertools.count(), list[float]()

    async def client(end: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (begin := time.perf_counter()) < end:
            number = next(numbers)
            type_, body = made[number % len(made)] if made else words(salt, number)
            head = (
                f"POST /search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {type_}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert told.startswith(b"http/1.1 200"), told
            await reader.readexactly(int(told.split(b"content-length: ")[1].split(b"\r\n")[0]))
            took.append(time.perf_counter() - begin)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client(begin + seconds) for _ in range(clients)))
    elapsed = time.perf_counter() - begin
    p50, p95 = np.quantile(took, [0.5, 0.95])
    found = {"asked": len(took), "per_second": len(took) / elapsed, "p50_ms": 1000 * p50, "p95_ms": 1000 * p95}
    return {k: round(float(v), 2) for k, v in found.items()}


if __name__ == "__main__":
    url, clients, seconds, kind, salt = sys.argv[1:]
    print(json.dumps(asyncio.run(drive(url, int(clients), float(seconds), kind, salt))))

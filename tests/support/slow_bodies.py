"""A program that opens connections to a server, and sends a body on each byte by byte, until its standard input ends.

    python slow_bodies.py PORT TOKEN PER_ROUTE ADDRESS,ADDRESS,... JSON-LIST-OF-METHOD-AND-PATH

When all are open, and the server has answered those whose body it does not wait for, it prints {route: connections that are still open}.
A connection that the server closes later (408: too slow) is opened again.
"""

import asyncio
import json
import sys
from collections import Counter

KINDS = ("application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded")
SETTLE = 2.0
"""Seconds after which a connection without an answer counts as one whose body the server waits for."""


async def trickle(port: int, token: str | None, address: str, method: str, path: str, kind: str, held: Counter[str]) -> None:
    """Send an endless body, one byte every 100 ms, again and again; only once if the server answers without waiting for it."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Type: {kind}", "Content-Length: 100000"]
        head += [f"Authorization: Bearer {token}"] if token else []
        writer.write(("\r\n".join([*head, "", ""]) + "{").encode())
        held[f"{method} {path}"] += 1
        begin, answer = asyncio.get_running_loop().time(), asyncio.create_task(reader.read(1))
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=0.1)
                writer.write(b" ")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            held[f"{method} {path}"] -= 1
            answer.cancel()
            writer.close()
        if asyncio.get_running_loop().time() - begin < SETTLE:
            return


async def main(port: str, token: str, per_route: str, addresses: str, routes: str) -> None:
    held: Counter[str] = Counter()
    places = [(n, method, path) for method, path in json.loads(routes) for n in range(int(per_route))]
    tasks = []
    for number, (n, method, path) in enumerate(places):
        address = addresses.split(",")[number % len(addresses.split(","))]
        kind = KINDS[1] if path == "/page/" else KINDS[2] if path == "/login" else KINDS[0]
        tasks.append(asyncio.create_task(trickle(int(port), token if n else None, address, method, path, kind, held)))
    await asyncio.sleep(SETTLE)
    print(json.dumps({route: count for route, count in held.items() if count}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

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
BEGINS = {KINDS[1]: '--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'}
"""How a body begins; default: "{"."""
SETTLE = 3.0
"""Seconds that the server has to answer those requests whose body it does not wait for."""


async def trickle(port: int, token: str | None, address: str, method: str, path: str, kind: str, held: Counter[str]) -> None:
    """Send an endless body, one byte every 100 ms; again if the server says that it is too slow, and not if it answers otherwise."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Type: {kind}", "Content-Length: 100000"]
        head += [f"Authorization: Bearer {token}"] if token else []
        writer.write(("\r\n".join([*head, "", ""]) + BEGINS.get(kind, "{")).encode())
        held[f"{method} {path}"] += 1
        answer, status = asyncio.create_task(reader.readline()), b""
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=0.1)
                writer.write(b" ")
                await writer.drain()
            status = answer.result()
        except ConnectionError:
            pass
        finally:
            held[f"{method} {path}"] -= 1
            answer.cancel()
            writer.close()
        if status and b" 408 " not in status:
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

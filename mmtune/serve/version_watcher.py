"""Load the live and the staged version before they are searched, and release versions that are no longer used."""

import asyncio
import gc
import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.serve.service import Service

log = logging.getLogger("mmtune.serve")
IDLE_SECONDS = 600.0
"""A version that is neither live, staged nor the previous live one is released when it was not searched for so long."""


async def open_new_versions(service: "Service") -> None:
    """Load the live and the staged version as soon as they exist, so that searches and promotions need not wait for a model.

    Runs until it is cancelled, and checks every `settings.watch` seconds. No error ends it: each is logged when it is new, and the
    next check tries again.
    """
    reported: dict[str, str] = {}
    while True:
        for version in await asyncio.to_thread(_wanted_versions, service, reported):
            if version in service.collection.open_versions:
                continue
            try:
                await asyncio.to_thread(service.collection.open, version)
                log.info("version %s is loaded", version)
                freeze_garbage()
                reported.pop(version, None)
            except Exception as e:  # damaged files can make libraries raise anything; the other version must still be loaded
                _report(reported, version, f"version {version} cannot be loaded: {type(e).__name__}: {e}")
        await asyncio.sleep(service.settings.watch)


def _report(reported: dict[str, str], what: str, line: str) -> None:
    """Log an error unless it is the last one that was logged about the same thing."""
    if reported.get(what) != line:
        log.error("%s", line)
        reported[what] = line


@cache
def freeze_garbage() -> None:
    """Exclude all objects that exist now from garbage collection. Only the first call has an effect.

    Otherwise the garbage collector would scan all of torch, and block every request for about 0.2 seconds each time.
    """
    gc.collect()
    gc.freeze()


def _wanted_versions(service: "Service", reported: dict[str, str]) -> list[str]:
    """Return the live and the staged version, and release the versions that are no longer used."""
    collection = service.collection
    try:
        pointer = collection.layout.live()
        wanted = [v for v in (pointer["version"], collection.staged()) if v]
        collection.pool.release_idle({*wanted, pointer["previous"] or ""}, IDLE_SECONDS)
    except Exception as e:
        _report(reported, "", f"the collection cannot be read: {type(e).__name__}: {e}")
        return []
    reported.pop("", None)
    return wanted

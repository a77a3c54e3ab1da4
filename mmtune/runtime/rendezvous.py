"""Processes that were started together find each other, also when some of them are started anew.

torchrun starts all workers again when one dies, on the same store of addresses; who reads an address that the dead has left
there waits for it for ever. So the living first agree on a name for this attempt, and all else is stored under that name.
"""

import json
import time
import uuid
from typing import TYPE_CHECKING

from mmtune.errors import TrainingError

if TYPE_CHECKING:
    from torch.distributed import Store

PAUSE, PATIENCE = 0.02, 1800.0  # seconds


def agree(store: "Store", rank: int, count: int) -> str:
    """A name that only the `count` processes which now call this know. Raises TrainingError when some do not come.

    Everyone shows a sign of its own; the first makes a name with all the signs it sees, and another name when a sign changes;
    a name stands once all whose signs are in it have said so.
    """
    sign, end = uuid.uuid4().hex, time.monotonic() + PATIENCE
    store.set(f"sign/{rank}", sign)
    name, signs = "", [""] * count
    while time.monotonic() < end:
        if rank == 0:
            seen = [_get(store, f"sign/{r}") for r in range(count)]
            if seen != signs:
                name, signs = uuid.uuid4().hex, seen
                store.set("name", json.dumps([name, signs]))
            if "" not in signs and all(_get(store, f"yes/{r}") == name for r in range(1, count)):
                store.set("stands", name)
                return name
        elif found := _get(store, "name"):
            offered, signs = json.loads(found)
            if signs[rank : rank + 1] == [sign]:
                if offered != name:
                    name = offered
                    store.set(f"yes/{rank}", name)
                if _get(store, "stands") == name:
                    return name
        time.sleep(PAUSE)
    raise TrainingError(f"process {rank}: not all of the {count} processes came within {PATIENCE / 60:.0f} minutes")


def _get(store: "Store", key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""

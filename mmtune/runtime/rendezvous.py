"""Rendezvous of processes that torchrun may restart: all ranks of one attempt agree on a key prefix for the address store.

torchrun restarts all workers when one dies, on the same store; a rank that reads an address left by a dead process waits for it
for ever. So the ranks first agree on a name for this attempt, and store everything else under that name.
"""

import json
import time
import uuid
from typing import TYPE_CHECKING

from mmtune.errors import TrainingError

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS, TIMEOUT_SECONDS = 0.02, 1800.0


def agree_on_attempt(store: "Store", rank: int, world_size: int) -> str:
    """A name that only the `world_size` processes which now call this know. Raises TrainingError when some do not call in time.

    Every rank publishes a token. Rank 0 proposes a name together with all tokens it reads, and a new one when a token changes; the
    name is final once every rank whose token is part of the proposal has confirmed it.
    """
    token, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT_SECONDS
    store.set(f"token/{rank}", token)
    name, tokens = "", [""] * world_size
    while time.monotonic() < deadline:
        if rank == 0:
            current = [_get(store, f"token/{r}") for r in range(world_size)]
            if current != tokens:
                name, tokens = uuid.uuid4().hex, current
                store.set("name", json.dumps([name, tokens]))
            if "" not in tokens and all(_get(store, f"confirmed/{r}") == name for r in range(1, world_size)):
                store.set("final", name)
                return name
        elif proposal := _get(store, "name"):
            proposed, tokens = json.loads(proposal)
            if tokens[rank : rank + 1] == [token]:
                if proposed != name:
                    name = proposed
                    store.set(f"confirmed/{rank}", name)
                if _get(store, "final") == name:
                    return name
        time.sleep(POLL_SECONDS)
    raise TrainingError(
        f"process {rank}: not all of the {world_size} processes started within {TIMEOUT_SECONDS / 60:.0f} minutes"
    )


def _get(store: "Store", key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""

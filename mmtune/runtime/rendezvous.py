"""Rendezvous of processes that torchrun may restart: all ranks of one attempt agree on a prefix for keys in the TCP store.

When one process dies, torchrun restarts all processes but keeps the store in which ranks publish their addresses. A rank that
reads the address of a dead process from the store would wait for that process forever. Therefore the ranks first agree on a
unique name for this attempt, and use it as the prefix of all keys that they store afterwards.
"""

import json
import time
import uuid
from typing import TYPE_CHECKING

from mmtune.errors import TrainingError

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS, TIMEOUT_SECONDS = 0.02, 1800.0  # 30 minutes: the nodes of a cluster job may start at different times


def agree_on_attempt(store: "Store", rank: int, world_size: int) -> str:
    """Return a unique name that all `world_size` running processes have agreed on. Every rank must call this function.

    Every rank publishes a random token. Rank 0 reads all tokens and proposes a name together with them. When a token changes,
    because a process was restarted, rank 0 proposes a new name. A rank confirms a proposal that contains its own token. Once all
    ranks have confirmed, the name is final. Raises TrainingError if that does not happen within TIMEOUT_SECONDS.
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
        f"process {rank}: not all of the {world_size} processes started within {TIMEOUT_SECONDS / 60:.0f} minutes; "
        "check that every node runs the launch command with the same address and world size"
    )


def _get(store: "Store", key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""

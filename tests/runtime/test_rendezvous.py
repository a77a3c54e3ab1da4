"""All ranks agree on a name that no earlier attempt used, whatever that attempt has left in the store."""

import threading

from torch.distributed import HashStore

from mmtune.runtime.rendezvous import agree_on_attempt


def start_ranks(store, count, absent=()):
    names = {}
    threads = [
        threading.Thread(target=lambda r=r: names.__setitem__(r, agree_on_attempt(store, r, count)), daemon=True)
        for r in range(count)
        if r not in absent
    ]
    for t in threads:
        t.start()
    return names, threads


def test_every_attempt_has_a_name_of_its_own():
    store, seen = HashStore(), set()
    for _ in range(5):
        names, threads = start_ranks(store, 4)
        for t in threads:
            t.join(20)
        assert len(names) == 4 and len(set(names.values())) == 1
        seen |= set(names.values())
    assert len(seen) == 5


def test_a_rank_that_died_during_the_rendezvous_is_replaced_by_its_successor():
    """Rank 2 publishes its token and dies while the other ranks wait. They agree with its successor, not with it."""
    store = HashStore()
    store.set("token/2", "dead")
    store.set("name", '["old", ["dead", "dead", "dead"]]')
    store.set("final", "old")
    names, threads = start_ranks(store, 3, absent=(2,))
    threads[0].join(0.5)
    assert not names
    late, more = start_ranks(store, 3, absent=(0, 1))
    for t in [*threads, *more]:
        t.join(20)
    assert len({*names.values(), *late.values()}) == 1 and len(names) == 2 and len(late) == 1

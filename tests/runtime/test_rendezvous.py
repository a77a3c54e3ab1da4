"""Processes meet under a name that no earlier attempt knew, whatever that one has left in the store."""

import threading

from torch.distributed import HashStore

from mmtune.runtime.rendezvous import agree


def meet(store, count, absent=()):
    names = {}
    threads = [
        threading.Thread(target=lambda r=r: names.__setitem__(r, agree(store, r, count)), daemon=True)
        for r in range(count)
        if r not in absent
    ]
    for t in threads:
        t.start()
    return names, threads


def test_every_attempt_has_a_name_of_its_own():
    store, seen = HashStore(), set()
    for _ in range(5):
        names, threads = meet(store, 4)
        for t in threads:
            t.join(20)
        assert len(names) == 4 and len(set(names.values())) == 1
        seen |= set(names.values())
    assert len(seen) == 5


def test_who_died_on_the_way_is_not_met():
    """Rank 2 shows its sign and dies; the first and others already wait with it. Its successor is met, not it."""
    store = HashStore()
    store.set("sign/2", "dead")
    store.set("name", '["old", ["dead", "dead", "dead"]]')
    store.set("stands", "old")
    names, threads = meet(store, 3, absent=(2,))
    threads[0].join(0.5)
    assert not names
    late, more = meet(store, 3, absent=(0, 1))
    for t in [*threads, *more]:
        t.join(20)
    assert len({*names.values(), *late.values()}) == 1 and len(names) == 2 and len(late) == 1

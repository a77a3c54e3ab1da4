"""Ray clusters for tests: one node; or two nodes on this machine (`ray.cluster_utils.Cluster`), one of which is killed in the middle of a test."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
WAIT_SECONDS = 600  # a Ray process imports torch first, and the machine may be busy


@contextlib.contextmanager
def one_node() -> Iterator:
    """Context manager: the module `ray`, connected to a new node of two CPUs."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    small = {"include_dashboard": False, "object_store_memory": 100 << 20}
    started(lambda: ray.init(address="local", num_cpus=2, log_to_driver=False, **small), ray.shutdown)
    yield ray
    ray.shutdown()


@contextlib.contextmanager
def two_nodes() -> Iterator["TwoNodes"]:
    """Context manager: two nodes of one CPU each, connected."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        started(lambda: cluster.add_node(**SMALL, include_dashboard=False, include_log_monitor=False))
        ray.init(address=cluster.address, log_to_driver=False)
        yield TwoNodes(ray, cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


def started(start: Callable[[], object], clean: Callable[[], object] = lambda: None) -> object:
    """Start a node. Ray waits 30 seconds for it, which a busy machine may need: then once more."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start()
        clean()
    return start()


class TwoNodes:
    """The head, and a second node for `one_dies`."""

    def __init__(self, ray, cluster) -> None:
        self.ray, self.cluster = ray, cluster

    def alive(self) -> int:
        return len([n for n in self.ray.nodes() if n["Alive"]])

    @contextlib.contextmanager
    def one_dies(self, when: Callable[[], int]) -> Iterator[list[int]]:
        """Context manager: adds a node, and kills it once `when()` is not 0. Yields a list that then holds that number."""
        second = started(lambda: self.cluster.add_node(**SMALL))
        self.cluster.wait_for_nodes()
        assert self.alive() == 2
        killed: list[int] = []

        def kill() -> None:
            end = time.time() + WAIT_SECONDS
            while time.time() < end and not when():
                time.sleep(0.01)
            killed.append(when())
            self.cluster.remove_node(second, allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        yield killed
        thread.join(WAIT_SECONDS)
        end = time.time() + 60  # the head hears of a node's end a little later
        while self.alive() != 1 and time.time() < end:
            time.sleep(0.2)
        assert killed and self.alive() == 1, (killed, self.alive())

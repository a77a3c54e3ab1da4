"""A server of the JSON API of Google Cloud Storage (gcp-storage-emulator) behind a proxy that fails; gcsfs in this process uses it."""

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer

import pytest

from tests.support.fault_proxy import FaultProxy, fault_proxy


class _Server(HTTPServer):
    request_queue_size = 128  # of requests that come at the same time, one of which is answered


@contextlib.contextmanager
def gcs_server(patch: pytest.MonkeyPatch, bucket: str) -> Iterator[FaultProxy]:
    """Run a server with an empty bucket in a thread, and name it to gcsfs as users do, by the environment."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    import fsspec

    storage = pytest.importorskip("gcp_storage_emulator.storage").Storage(use_memory_fs=True)
    pytest.importorskip("gcp_storage_emulator.handlers.buckets").create_bucket(bucket, storage)
    server = _Server(("127.0.0.1", 0), partial(emulator.RequestHandler, storage))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with fault_proxy(f"127.0.0.1:{server.server_port}") as proxy:
            patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            patch.setenv("FSSPEC_GS_TOKEN", "anon")
            settings = fsspec.config.conf.copy()
            fsspec.config.set_conf_env(settings)
            patch.setattr(fsspec.config, "conf", settings)
            yield proxy
    finally:
        server.shutdown()
        server.server_close()

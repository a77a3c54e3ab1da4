"""Shared fixtures: no network, few threads, a cache of its own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["MMTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("MMTUNE_CACHE")


@pytest.fixture(autouse=True, scope="session")
def _threads():
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))

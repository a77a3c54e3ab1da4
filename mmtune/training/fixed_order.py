"""Gradients of rows that are used several times, summed in the same order in every run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def gradients_in_fixed_order(device: torch.device | str) -> Iterator[None]:
    """Context manager for forward and backward passes on a CPU, in which torch sums the gradients of indexed rows in a fixed order.

    By default the threads add the rows of equal index in the order in which they come to them (an atomic addition), so that two
    equal runs end with different weights. Our own losses avoid such gradients (`losses.gather_rows`), but towers index tables (relative
    positions), and losses of libraries or users index embeddings. On other devices nothing changes: there the deterministic
    kernels are slower, or missing.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False  # it costs time, and no result depends on it
    torch.use_deterministic_algorithms(True, warn_only=not before[0] or before[1])
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill

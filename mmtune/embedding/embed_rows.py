"""Rows of packed data -> unit vectors with their ids, in memory. Every other embedding outside training calls `embed_rows`."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.contracts import Embeddings
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.errors import DataError
from mmtune.model.encode import encode_batches
from mmtune.model.prompts import QUERY, has_query_prompt
from mmtune.recipe.prompts_block import ZERO_SHOT
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model


def embed_rows(
    model: "Model",
    data: "Data | WeightedConcat",
    modality: str,
    rows: np.ndarray,
    *,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda n: None,
    role: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> np.ndarray:
    """Unit vectors float32 [n, D] of one modality of rows [n] of `data`.

    Identical content is encoded once, in the order of the shards on disk. advance(n): called as rows are done; role: the prompt
    around captions. Several `processes` that all call this encode a share each and all get every vector. Raises DataError for
    a value that cannot be decoded.
    """
    first, inverse = first_occurrences(data.labels[modality][rows])
    local = rows[first][processes.local_slice(len(first))]
    signals = (functools.partial(decode_row, data, row, modality) for row in local.tolist())
    parts = list(encode_batches(model, modality, signals, batch_size, advance, role))
    advance(len(rows) - len(local))
    encoded = np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)
    return processes.gather(torch.from_numpy(encoded), len(first)).numpy()[inverse]


def shared_modalities(model: "Model", data: "Data | WeightedConcat", modalities: Sequence[str] | None = None) -> list[str]:
    """The modalities that model and data both have, in the data's order; with `modalities` only these.

    Raises DataError when there is none, or when one of `modalities` is missing.
    """
    both = [m for m in data.modalities if m in model.towers]
    if modalities:
        missing = [m for m in modalities if m not in both]
        if missing:
            raise DataError(
                f"{data.spec}: {missing[0]} is not in both: the data have {data.modalities}, the model {list(model.towers)}"
            )
        both = [m for m in both if m in modalities]
    if not both:
        raise DataError(f"{data.spec} has {data.modalities}, the model has {list(model.towers)}: nothing in common to embed")
    return both


def embed_data(
    model: "Model",
    data: "Data | WeightedConcat",
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    role: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Embeddings]:
    """Vectors of every row: {modality: Embeddings}, rows in the data's order, without rows that lack the modality.

    Without `role` the vectors are those of candidates; where the model has its own prompt for queries, the tower runs a second
    time and `Embeddings.queries` are the rows' vectors as queries. With `role` there are only the vectors of that prompt.
    Several `processes` that all call this encode a share each and all get every vector.
    """
    out = {}
    fingerprint = model.fingerprint
    for m in shared_modalities(model, data, modalities):
        rows = np.flatnonzero(data.present[m])
        roles = [role, QUERY] if role is None and has_query_prompt(model.prompts, m) else [role]
        with Progress(f"embed {m}", len(rows) * len(roles), quiet=quiet) as progress:
            made = [
                embed_rows(model, data, m, rows, batch_size=batch_size, advance=progress.advance, role=r, processes=processes)
                for r in roles
            ]
        labels = {k: v[rows] for k, v in data.labels.items()}
        ids, groups = [data.ids[i] for i in rows], [data.groups[i] for i in rows]
        out[m] = Embeddings(ids, groups, labels, made[0], fingerprint, *made[1:])
    return out


def embed_classes(
    model: "Model", data: "Data", modalities: Sequence[str] | None = None, batch_size: int = 64, quiet: bool = True
) -> dict[str, Embeddings]:
    """Captions as class names, for modalities where the model has a prompt `zero_shot`; {} where it has none."""
    names = [m for m in shared_modalities(model, data, modalities) if ZERO_SHOT in model.prompts.get(m, {})]
    return embed_data(model, data, names, batch_size, quiet, ZERO_SHOT) if names else {}

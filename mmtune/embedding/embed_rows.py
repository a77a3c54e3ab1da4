"""Embed rows of packed datasets in memory. All other embedding of datasets is built on `embed_rows`."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from mmtune.contracts import Embeddings
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.embedding.streamed_rows import stream_of
from mmtune.errors import DataError
from mmtune.model.encode import encode_batches
from mmtune.model.prompts import QUERY, has_query_prompt
from mmtune.recipe.prompts_block import ZERO_SHOT
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.streamed_sets import StreamedSets
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
    """Embed one modality of some rows of a dataset: L2-normalised embeddings [n, D] float32, in the order of `rows`.

    Identical content is encoded only once.

    rows: row numbers [n]
    batch_size: values in one forward pass
    advance: called with the number of rows that have just been embedded, for a progress bar
    role: selects the prompt template for texts (see `mmtune.model.prompts`)
    processes: the processes that call this function together; each encodes a share of the values, and each gets all embeddings

    Raises DataError if a value cannot be decoded.
    """
    if (stream := stream_of(data)) is not None:
        stream.embed(model, [(modality, role)], batch_size, processes=processes)
        advance(len(rows))
        return stream.vectors(modality, cast("Data", data).row_numbers(rows), role)
    first, inverse = first_occurrences(data.labels[modality][rows])
    local = rows[first][processes.local_slice(len(first))]
    signals = (functools.partial(decode_row, data, row, modality) for row in local.tolist())
    parts = list(encode_batches(model, modality, signals, batch_size, advance, role))
    advance(len(rows) - len(local))
    encoded = np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)
    return processes.gather(torch.from_numpy(encoded), len(first)).numpy()[inverse]


def shared_modalities(
    model: "Model", data: "Data | WeightedConcat | StreamedSets", modalities: Sequence[str] | None = None
) -> list[str]:
    """Return the modalities that model and dataset have in common, in the order of the dataset.

    modalities: restrict the result to these

    Raises DataError if they have none in common, or if one of `modalities` is not among those in common.
    """
    both = [m for m in data.modalities if m in model.towers]
    if modalities:
        missing = [m for m in modalities if m not in both]
        if missing:
            raise DataError(
                f"{data.spec}: cannot embed {missing[0]}: the dataset has {data.modalities}, the model has {list(model.towers)}"
            )
        both = [m for m in both if m in modalities]
    if not both:
        raise DataError(
            f"{data.spec} has the modalities {data.modalities}, the model has {list(model.towers)}: none in common to embed"
        )
    return both


def wanted_vectors(model: "Model", names: Sequence[str], role: str | None = None) -> list[tuple[str, str | None]]:
    """What `embed_data` encodes: each (modality, prompt role)."""
    with_queries = {m for m in names if role is None and has_query_prompt(model.prompts, m)}
    return [(m, r) for m in names for r in ([role, QUERY] if m in with_queries else [role])]


def embed_data(
    model: "Model",
    data: "Data | WeightedConcat",
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    role: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Embeddings]:
    """Embed all rows of a dataset: {modality: Embeddings}, in the order of the dataset, without rows that lack the modality.

    modalities: which modalities to embed; None means all that model and dataset have in common
    batch_size: values in one forward pass
    quiet: whether to hide the progress bar
    role: None embeds every row as a candidate (prompt role "default"). If the model has a different prompt for queries, every
        row is also embedded as a query, in `Embeddings.queries`. Any other role embeds every row with the prompt of that role
        only.
    processes: as in `embed_rows`
    """
    out = {}
    fingerprint = model.fingerprint
    names = shared_modalities(model, data, modalities)
    if (stream := stream_of(data)) is not None:
        stream.embed(model, wanted_vectors(model, names, role), batch_size, quiet, processes)
    for m in names:
        rows = np.flatnonzero(data.present[m])
        roles = [r for _, r in wanted_vectors(model, [m], role)]
        with Progress(f"embed {m}", len(rows) * len(roles), quiet=quiet) as progress:
            made = [
                embed_rows(model, data, m, rows, batch_size=batch_size, advance=progress.advance, role=r, processes=processes)
                for r in roles
            ]
        labels = {k: v[rows] for k, v in data.labels.items()}
        ids, groups = data.ids.take(rows), data.groups.take(rows)
        out[m] = Embeddings(ids, groups, labels, made[0], fingerprint, *made[1:])
    return out


def embed_classes(
    model: "Model", data: "Data", modalities: Sequence[str] | None = None, batch_size: int = 64, quiet: bool = True
) -> dict[str, Embeddings]:
    """Embed texts as class names, with the prompt role `zero_shot`.

    The result contains only the modalities for which the model has such a prompt; it is empty if there are none.
    """
    names = [m for m in shared_modalities(model, data, modalities) if ZERO_SHOT in model.prompts.get(m, {})]
    return embed_data(model, data, names, batch_size, quiet, ZERO_SHOT) if names else {}

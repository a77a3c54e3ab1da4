"""Embed on a Ray cluster for mining: `mmtune mine --engine ray`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.embedding.parquet_parts import embed
from mmtune.embedding.ray_workers import on_ray
from mmtune.errors import DataError
from mmtune.mining.stored_vectors import QUERY_FOLDER
from mmtune.model.prompts import QUERY, has_query_prompt

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def embed_on_ray(
    spec: object,
    model: "Model",
    data: object,
    out: Path,
    modalities: Sequence[str],
    *,
    batch_size: int,
    workers: int | None,
    skip_bad: bool,
    quiet: bool,
) -> Path:
    """Embed a dataset on the Ray cluster into Parquet files beside `out`, as `mine --vectors` reads them, and return their directory.

    The directory belongs to the model's fingerprint. After an interruption the parts (one for each shard and modality) that are
    written there are not made again; this process makes those that the workers did not finish.

    spec: the MODEL that each worker loads; `model` is the same, loaded
    data: DATA that each worker opens
    modalities: what to embed. Those with a query prompt are embedded twice, as candidates and as queries

    Raises DataError if model or data are objects, which only this process has.
    """
    if not isinstance(spec, str | Path) or not isinstance(data, str | Path):
        raise DataError("--engine ray: give MODEL and DATA by name, because each worker opens them itself")
    folder = out.with_name(f"{out.name}.vectors-{model.fingerprint[:12]}")
    asked = [m for m in modalities if has_query_prompt(model.prompts, m)]
    for place, names, role in ((folder, list(modalities), None), (folder / QUERY_FOLDER, asked, QUERY)):
        if names:
            work = (str(spec), str(data), str(place.absolute()), names, batch_size, True)
            on_ray(embed, work, workers, role=role, skip_bad=skip_bad)
            embed(model, str(data), place, names, batch_size, quiet, role=role, skip_bad=skip_bad)
    return folder

"""Outputs of frozen towers for the first pairs of streamed data, to which heads are fitted before the first step."""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune import modalities
from mmtune.contracts import Pair, Signal
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.embedding.feature_cache import BATCH_SIZE, features_of_signals
from mmtune.errors import DataError, Rejected
from mmtune.model.prompts import with_prompt
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def streamed_features(
    model: "Model", sets: StreamedSets, pair: Pair, limit: int, seed: int, quiet: bool, skip_damaged: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the tower outputs [n, C_a], [n, C_b] of the first rows that have both modalities, in float64 on the CPU.

    The shards are read in the order of the first epoch, until there are `limit` rows. Values that occur again are encoded once; rows
    with a value that cannot be decoded are left out. The output of a long value is the mean over its windows. `model` must be in eval
    mode.

    skip_damaged: leave out the rest of a shard that is damaged or truncated

    Raises DataError if there are fewer than two such rows, or if a shard cannot be read.
    """
    features: dict[str, dict[int, Tensor]] = {m: {} for m in pair}
    found: list[tuple[int, int]] = []
    total = limit if sets.rows is None else min(limit, sets.rows)
    with Progress(f"features {' and '.join(pair)}", total, quiet=quiet) as progress:
        for block in _blocks(_rows_with(sets, pair, seed, skip_damaged), limit):
            for m in pair:
                _encode(model, m, block, features[m])
            both = [tuple(row.labels[m] for m in pair) for row in block]
            found += [(x, y) for x, y in both if x in features[pair[0]] and y in features[pair[1]]]
            progress.advance(len(block))
    if len(found) < 2:
        raise DataError(f"{sets.spec}: {len(found)} rows have both {pair[0]} and {pair[1]}; heads need at least two pairs")
    x, y = (torch.stack([features[m][labels[k]] for labels in found]) for k, m in enumerate(pair))
    return x, y


def _rows_with(sets: StreamedSets, pair: Pair, seed: int, skip_damaged: bool) -> Iterator[StreamedRow]:
    """The rows of the first epoch's shards that have both modalities."""
    for shard in sets.epoch_shards(seed, 0):
        try:
            for row in sets.read(shard.file, Counter()):
                if all(m in row.values for m in pair):
                    yield row
        except DataError:
            if not skip_damaged:
                raise  # training, which reads the shard again, names what it leaves out


def _blocks(rows: Iterator[StreamedRow], limit: int) -> Iterator[list[StreamedRow]]:
    """At most `limit` rows, in blocks of BATCH_SIZE."""
    for start in range(0, limit, BATCH_SIZE):
        block = [row for _, row in zip(range(min(BATCH_SIZE, limit - start)), rows, strict=False)]
        if block:
            yield block
        if len(block) < BATCH_SIZE:
            return


def _encode(model: "Model", m: str, rows: list[StreamedRow], known: dict[int, Tensor]) -> None:
    """Add the outputs for the values of `rows` to `known`, {content label: [C]}, but for those that cannot be decoded."""
    kind, new = modalities.get(m), {}
    for row in rows:
        label = row.labels[m]
        if label in known or label in new:
            continue
        try:
            new[label] = kind.decode(row.values[m])
        except Rejected:
            continue  # training counts and names it
    preprocess = with_prompt(model.towers[m].preprocess, model.prompts, m)
    signals = [functools.partial(_same, signal) for signal in new.values()]
    if signals:
        outputs = features_of_signals(model.towers[m], preprocess, signals, model.device)
        known |= {label: out.double().mean(0) for label, out in zip(new, outputs, strict=True)}


def _same(signal: Signal) -> Signal:
    return signal

"""A term of the objective whose loss takes embeddings and class labels: class-proxy and ranking losses."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.errors import RecipeError, TrainingError
from mmtune.losses.families import check_output
from mmtune.losses.metric_learning import build, part
from mmtune.training.class_labels import AnyClassLabels, IndexedClasses, StreamedClasses
from mmtune.training.unique_items import PairItems

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.training.objective_spec import LossTerm

PROXY_LR = 100.0
"""Default learning rate of proxies as a multiple of `train.lr`, as in Proxy Anchor (Kim et al. 2020, arXiv 2003.13911)."""
PATIENCE = 20
"""After so many batches of streamed rows in which a loss without proxies has nothing to compare, it warns."""


class ClassLabelLoss(nn.Module):
    """Applies a loss module, and a miner if there is one, to the embeddings and classes of a batch's items.

    The parameters of the loss module (class proxies) are trained, saved in checkpoints, and dropped at the end: they are not part
    of the artifact, nor of the weight EMA and L2-SP.

    term: loss class, options and miner
    labels: the classes of the training rows
    dim: dimension of the embeddings
    seed: seed of the initial proxies, and of losses and miners that draw random numbers
    """

    def __init__(self, term: "LossTerm", labels: AnyClassLabels, dim: int, seed: int) -> None:
        super().__init__()
        assert isinstance(term.function, type)
        self.name, self.key, self.seed, self.proxy_lr = term.loss, term.key, seed, term.proxy_lr
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            counted = {"num_classes": labels.count, "embedding_size": dim}
            self.loss = build(term.function, term.options, term.key, counted)
        self.miner = None if term.miner is None else part("miner", term.miner, f"{term.key}.miner")
        self.notes, self.classes = labels.notes, labels.module()
        self._checked, self._calls_without = False, 0

    @property
    def has_proxies(self) -> bool:
        """Whether the loss has parameters of its own. They fit the full embeddings only, not Matryoshka prefixes."""
        return any(True for _ in self.loss.parameters())

    def lr_share(self, lr: float) -> float:
        """Peak learning rate of the proxies as a multiple of `lr`."""
        return PROXY_LR if self.proxy_lr is None else self.proxy_lr / lr

    def forward(self, items: PairItems, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Value of the loss for the query items of a pair of modalities (candidates-only items are not used).

        z: {modality: embeddings of the pair's items}
        """
        vectors, classes = [], []
        for m, unique in dict(zip(items.pair, (items.a, items.b), strict=True)).items():
            of_item = self.classes.of_queries(m, unique, batch)
            vectors.append(z[m][: unique.n_queries][of_item >= 0])
            classes.append(of_item[of_item >= 0])
        embeddings, labels = torch.cat(vectors), torch.cat(classes)
        if isinstance(self.classes, StreamedClasses) and self._calls_without < PATIENCE and not self.has_proxies:
            self._warn_without_pairs(labels)
        if not len(labels):
            return embeddings.sum()
        with self._same_random_numbers(batch):
            try:
                mined = () if self.miner is None else (self.miner(embeddings, labels),)
                value = self.loss(embeddings, labels, *mined)
            except (AssertionError, ValueError, TypeError, NotImplementedError, IndexError) as e:
                raise TrainingError(f"{self.key}: {self.name} failed: {type(e).__name__}: {' '.join(str(e).split())}") from e
        if not self._checked:
            check_output(f"{self.name} ({self.key})", value, (), embeddings)
            self._checked = True
        return value

    @contextlib.contextmanager
    def _same_random_numbers(self, batch: Batch) -> Iterator[None]:
        """Context manager in which random numbers depend only on the seed and the batch.

        So all processes, which compute this loss on the same embeddings, draw the same triplets, and so does a resumed run.
        """
        devices = [batch.index.device] if batch.index.device.type == "cuda" else []
        ids = batch.labels["id"]  # not the row numbers, which streamed rows have only within an epoch
        numbers = [self.seed, int(ids.sum()) % 2**63, int(ids[0]), len(batch.ids)]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
            yield

    def _warn_without_pairs(self, labels: Tensor) -> None:
        """Warn once if none of the first batches of streamed rows has two items of a class and one of another: `check_batches` cannot."""
        counts = torch.unique(labels, return_counts=True)[1]
        if len(counts) > 1 and int(counts.max()) > 1:
            self._calls_without = PATIENCE
            return
        self._calls_without += 1
        if self._calls_without == PATIENCE:
            warnings.warn(
                f"{self.key}: {self.name} compares items of the same class, but none of the first {PATIENCE} batches has two items of one "
                "class and one of another, so it learns nothing; use a loss with class proxies, larger batches, or data.read=index with "
                "data.batches: {groups: P, rows: K}",
                stacklevel=2,
            )

    def get_extra_state(self) -> dict[str, Tensor]:
        """Called by `state_dict`: tensors that the loss keeps as plain attributes, e.g. a running histogram."""
        return {name: value for name, value in vars(self.loss).items() if isinstance(value, Tensor)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClassLabelLoss":
        """Called by `to`: moves these tensors, too."""
        self.set_extra_state({name: fn(value) for name, value in self.get_extra_state().items()})
        return super()._apply(fn, recurse)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Called by `load_state_dict`."""
        for name, value in state.items():
            setattr(self.loss, name, value)

    def check_batches(self, pairs: Sequence[tuple[str, str]], data: "WeightedConcat", batches: Sequence[np.ndarray]) -> None:
        """Raise RecipeError if a loss without proxies never finds two items of a class and one of another class in a batch."""
        if self.has_proxies:
            return
        assert isinstance(self.classes, IndexedClasses)
        for rows in batches:
            for pair in pairs:
                both = rows[data.present[pair[0]][rows] & data.present[pair[1]][rows]]
                found = []
                for m in dict.fromkeys(pair):
                    of_row = self.classes.of_rows(m, torch.from_numpy(both)).numpy()
                    items = np.unique(np.stack([of_row, data.labels[m][both]]), axis=1)
                    found.append(items[0][items[0] >= 0])
                _, count = np.unique(np.concatenate(found), return_counts=True)
                if len(count) > 1 and count.max() > 1:
                    return
        raise RecipeError(
            f"{self.key}: {self.name} compares items of the same class, but no batch has two items of one class and one of another; "
            "use data.batches: {groups: P, rows: K}, or another label"
        )


class ClassLabelLosses(nn.ModuleDict):
    """The class-label losses of an objective; the keys are the numbers of their terms."""

    def __init__(self, losses: Mapping[str, ClassLabelLoss]) -> None:
        super().__init__(dict(losses))

    def _losses(self) -> list[ClassLabelLoss]:
        return [loss for loss in self.values() if isinstance(loss, ClassLabelLoss)]

    def has_proxies(self, number: int) -> bool:
        """Whether term `number` is a class-label loss with parameters of its own."""
        return any(True for _ in self[str(number)].parameters()) if str(number) in self else False

    def lr_shares(self, lr: float) -> dict[int, float]:
        """{id of a class proxy: its peak learning rate as a multiple of `lr`}."""
        return {id(p): loss.lr_share(lr) for loss in self._losses() for p in loss.parameters()}

    @property
    def notes(self) -> list[str]:
        """How many classes each term has, and how many values it leaves out, one line each."""
        return [line for loss in self._losses() for line in loss.notes]

    def check_batches(
        self, number: int, pairs: Sequence[tuple[str, str]], data: "WeightedConcat", batches: Sequence[np.ndarray]
    ) -> None:
        """Check that term `number` can learn from the batches of an epoch (see `ClassLabelLoss.check_batches`)."""
        loss = self[str(number)]
        assert isinstance(loss, ClassLabelLoss)
        loss.check_batches(pairs, data, batches)

"""Source `nearest`: the nearest neighbours of the query's vector, by exact or approximate search."""

import numpy as np

from mmtune.mining.context import MiningContext
from mmtune.mining.sources import ScoredCandidates
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items
from mmtune.search.approximate import ApproximateSearch
from mmtune.search.blocked import ExactSearch


def resolve_device(name: str) -> str:
    """Return the torch device to search on; "auto" means the GPU if there is one, else the CPU."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_search(candidates: Items, options: MiningOptions) -> ExactSearch | ApproximateSearch:
    """Create the search that the options select; "auto" means exact up to `exact_up_to` candidates, and IVF beyond."""
    search = options.search
    method = search.method
    if method == "auto":
        method = "exact" if len(candidates) <= search.exact_up_to else "ivf"
    device = resolve_device(search.device)
    if method == "exact":
        return ExactSearch(candidates.vectors, search.memory_mb, device, options.window)
    return ApproximateSearch(candidates.vectors, method, search.probes, device, options.window)


class NearestCandidates:
    """Proposes the `window` nearest candidates that are not known positives.

    search: an existing search over the same candidates, to be reused
    """

    def __init__(self, context: MiningContext, search: ExactSearch | ApproximateSearch | None = None):
        self.context = context
        self.search = search or make_search(context.candidates, context.options)

    def propose(self, queries: np.ndarray) -> ScoredCandidates:
        """Return candidates [B, window] of query items [B], B <= `search.block`."""
        vectors = self.context.queries.vectors[queries]
        return ScoredCandidates(*self.search.top(vectors, self.context.positives.of(queries)))

    def recall(self, sample: int = 200) -> float:
        """Recall of the search against exact search, on a sample of the queries; 1 if the search is exact."""
        if isinstance(self.search, ExactSearch):
            return 1.0
        context, options = self.context, self.context.options
        q = np.unique(np.linspace(0, len(context.queries) - 1, sample).astype(np.int64))
        scan = ExactSearch(context.candidates.vectors, options.search.memory_mb, "cpu", options.window)
        vectors, excluded = context.queries.vectors[q], context.positives.of(q)
        exact, approximate = scan.top(vectors, excluded)[0], self.search.top(vectors, excluded)[0]
        hits = sum(len(np.intersect1d(e[e >= 0], a[a >= 0])) for e, a in zip(exact, approximate, strict=True))
        return hits / max(int((exact >= 0).sum()), 1)

"""Hard-negative mining: find candidates, drop likely false negatives, select the rest, write a negatives table and its audit.

A source proposes candidates; a guard drops candidates that may be unlabelled positives. Everything needed to write a source or
a guard of your own can be imported from here:

    from mmtune.mining import CandidateBlock, MiningContext, register_guard, register_source
"""

from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.context import MiningContext, row_finder
from mmtune.mining.guards import Guard, register_guard
from mmtune.mining.sources import MinerSource, ScoredCandidates, register_source

__all__ = [
    "CandidateBlock",
    "Guard",
    "MinerSource",
    "MiningContext",
    "ScoredCandidates",
    "register_guard",
    "register_source",
    "row_finder",
]

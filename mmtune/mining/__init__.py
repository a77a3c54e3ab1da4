"""Hard-negative mining: candidates -> guards -> selection -> a negatives table and its audit.

What the author of a miner source or a guard needs is importable from here. A source proposes candidates; a guard drops those
that may be positives which nobody labelled:

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

"""Nearest-neighbour search on arrays of L2-normalised vectors: exact scores, and one total order that also orders ties.

The modules:
    exact: `topk`, exact search for a few or many queries
    blocked: `ExactSearch`, the exact scan used by mining, which can leave out excluded pairs
    approximate: `ApproximateSearch`, the same interface backed by a faiss index
    exact_scores, tie_order: how scores are computed and how results are ordered
    quantised: low-precision matrix products for the scan in `blocked`
    vectors: arrays of vectors
    pair_set: sets of pairs to exclude
    parallel: runs blocks of queries on several threads
"""

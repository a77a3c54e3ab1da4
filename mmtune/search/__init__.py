"""Nearest-neighbour search on arrays of unit vectors: exact scores, and one total order for ties.

`exact`: `topk` of a few or many queries; `blocked`: `ExactSearch`, the scan that mining uses, which leaves out excluded pairs;
`approximate`: the same from a faiss index; `tie_order`, `exact_scores`: the order and the scores; `quantised`: the scan's
products; `vectors`: arrays of vectors; `pair_set`: excluded pairs; `parallel`: blocks of queries on several threads.
"""

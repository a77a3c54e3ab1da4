"""Decide which candidates are positives of which queries: by row, group, identical content or human judgment.

Evaluation, mining, comparison and reports all use this numpy implementation. Losses use `mmtune.losses.positives_mask`, which
implements the same rule in torch. The modules:
    items: merges rows of identical content into items
    positives: `Positives` and `relevant_blocks`, the positives of every query
    judgments: reads files of human judgments
    trec_files: writes relevance judgments and runs (ranked results) as TREC files, for other evaluation tools
    ragged: lists of different lengths, stored in two arrays
"""

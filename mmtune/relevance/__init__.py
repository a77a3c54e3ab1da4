"""Which candidates are positives of which queries: by row, group, identical content or human judgment.

One numpy model for evaluation, mining, comparison and reports; `mmtune.losses.positives_mask` is its torch twin. `items`: rows of
identical content are one item; `positives`: `Positives`, `relevant_blocks`; `judgments`: files of human judgments; `trec_files`:
relevance and runs for other evaluators; `ragged`: lists of different lengths.
"""

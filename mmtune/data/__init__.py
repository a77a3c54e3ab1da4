"""Rows from a source to batches: sources/ (a table or folder -> rows) -> pack/ (rows -> checked shards) -> shards/ (shards -> rows
by index) -> loader/ (rows -> batches)."""

"""Embed datasets. All embedding outside of the training loop goes through this package.

- `embed_rows`: embed rows or whole datasets in memory (functions `embed_rows` and `embed_data`)
- `parquet_parts`: the command `mmtune embed`, which writes Parquet files and can run in several processes at once
- `ray_workers`: run `mmtune embed` on a Ray cluster
- `feature_cache`: compute the features of frozen towers once, and train on the stored features
"""

"""The only forward pass outside training: packed rows -> unit vectors with their ids.

`embed_rows`: in memory (`embed_data`, `embed_rows`); `parquet_parts`: `mmtune embed`, files that several processes share;
`ray_workers`: the same on a Ray cluster; `feature_cache`: stored features of frozen towers.
"""

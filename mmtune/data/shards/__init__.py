"""DATA (a directory of shards, tars, URLs) -> local tar files (locate) -> a table of their samples (tar_index, shard_cache) -> `Data`,
rows by index (dataset); several of them, weighted, are one training set (weighted_concat)."""

from mmtune.data.shards.dataset import Data, open_data

__all__ = ["Data", "open_data"]

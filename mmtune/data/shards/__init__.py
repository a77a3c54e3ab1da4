from mmtune.data.shards.dataset import Data, open_data

__all__ = ["Data", "open_data"]

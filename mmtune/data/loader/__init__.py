"""Training batches. batch_plan decides which rows form a batch; loader decodes, augments, preprocesses and collates them."""

from mmtune.data.loader.batch_plan import register_batch_plan
from mmtune.data.loader.epoch_rows import EpochRows

__all__ = ["EpochRows", "register_batch_plan"]

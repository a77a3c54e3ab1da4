"""Training batches. batch_plan decides which rows form a batch; loader decodes, augments, preprocesses and collates them."""

"""Training: one loop; objectives, large batches, tuning, regularisation, checkpoints."""

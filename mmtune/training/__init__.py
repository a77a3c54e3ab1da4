"""Training: the training loop, the objective, large batches, partial tuning, regularisation and checkpoints."""

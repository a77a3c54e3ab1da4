"""Rows of the training data -> which rows make a batch (batch_plan) -> decoded, augmented and preprocessed batches (loader)."""

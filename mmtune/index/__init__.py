"""A new model is a new space: artifact -> re-embed -> new version -> gate -> shadow -> promote -> roll back."""

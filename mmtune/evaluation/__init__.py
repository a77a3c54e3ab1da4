"""Retrieval evaluation: metrics in every direction, slices, and evaluation tasks."""

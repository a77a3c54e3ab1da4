"""Comparison of two models: paired differences with bootstrap intervals, the gate, the confusable and the retention slice."""

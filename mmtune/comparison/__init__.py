"""Compare two models: paired differences with bootstrap intervals, the gate, and the confusable and retention slices."""

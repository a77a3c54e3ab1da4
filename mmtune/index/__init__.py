"""Collections: items embedded by several models, one index version per model.

A new model has a new embedding space, so its vectors cannot be mixed with those of the old model. Instead, all items are embedded
again into a new version, which is evaluated (gate, shadow searches), then promoted to live, and can be rolled back.
"""

"""The demo: draws its own data and runs the whole workflow on them, from packing to replacing the model of a live index."""

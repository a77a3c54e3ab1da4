"""The version of mmtune; `mmtune.__version__` is the same."""

__version__ = "0.1.0"

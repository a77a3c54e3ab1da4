"""The version of mmtune, also available as `mmtune.__version__`."""

__version__ = "0.1.0"

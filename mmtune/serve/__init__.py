"""A collection over HTTP: REST, a page, limits, metrics. `mmtune serve COLLECTION`; in Python `mmtune.serve.app.make(...)`."""

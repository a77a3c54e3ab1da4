"""A collection over HTTP: REST, a search page, limits and metrics. `mmtune serve COLLECTION`; in Python `create_app(COLLECTION)`."""

"""Serve a collection over HTTP: a REST API, a search page, and metrics.

Start it with `mmtune serve COLLECTION`, or create the application in Python with `create_app(COLLECTION)`.
"""

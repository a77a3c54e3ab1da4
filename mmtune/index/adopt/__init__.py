"""Adopt vectors that other software stored in a database: they become the first version of a collection."""

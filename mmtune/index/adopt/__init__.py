"""Adopt vectors that other software stored in a database: they become the first version of a collection.

To adopt from another database, write a class with the attributes and methods of `VectorSource`, whose method `rows` yields
`VectorRows` (`usable_rows` makes them and counts what is unusable), and call `register_vector_source` or name it as
"package.module:Class".
"""

from mmtune.index.adopt.vector_sources import VectorRows, VectorSource, register_vector_source, usable_rows

__all__ = ["VectorRows", "VectorSource", "register_vector_source", "usable_rows"]

"""Packing of source rows into shards.

columns makes a row with id, group and metadata from a source row. decode_pool checks its files in worker processes. split_writer and
shard_writer write shards. resume_journal records finished shards, so that an interrupted pack can resume.
"""

"""Source rows -> rows with an id (columns) -> checked in worker processes (decode_pool) -> shards (split_writer, shard_writer), with a
journal by which a killed pack resumes."""

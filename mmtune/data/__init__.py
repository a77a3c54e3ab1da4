"""Data processing, in this order:

sources/ reads rows from a table, a folder or tar files.
pack/ checks the rows and writes them into shards (tar files).
shards/ opens shards and gives random access to their rows.
loader/ decodes and preprocesses rows and makes batches for training.
"""

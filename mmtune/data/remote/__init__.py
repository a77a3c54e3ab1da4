"""Reading of remote files through fsspec.

remote_files fetches whole files; remote_stream reads a file from its start to its end. retry repeats requests that failed for a
passing reason.
"""

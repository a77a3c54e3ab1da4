"""Sources of `mmtune pack`: read numbered rows from tables (CSV, TSV, JSONL, Parquet), folders of media files, and tar files."""

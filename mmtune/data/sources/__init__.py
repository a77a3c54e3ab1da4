"""A CSV, TSV, JSONL or Parquet file, or a folder of media files -> numbered rows of cells, or why a row cannot be used."""

"""Reports of results, each a single self-contained HTML file."""

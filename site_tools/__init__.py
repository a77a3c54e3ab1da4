"""What makes the documentation site of docs/ beside MkDocs: generated pages, plain Markdown copies and llms.txt."""

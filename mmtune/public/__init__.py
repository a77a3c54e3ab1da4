"""The functions of `import mmtune`, with their heavy imports inside; `mmtune` itself lists them."""

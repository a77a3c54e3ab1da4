"""The public functions of mmtune. Each imports its implementation when it is called, so that `import mmtune` is fast."""

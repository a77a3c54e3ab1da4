"""Hard-negative mining: candidates -> guards -> selection -> a negatives table and its audit."""

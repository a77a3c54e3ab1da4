"""Runs of one recipe with other values: a search for hyperparameters on Optuna (`run_sweep`), and repetition with other seeds (`repeat_seeds`)."""

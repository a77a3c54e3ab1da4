"""Predict classes and anomaly scores of files and rows that nobody has labelled, with the scorers of the evaluation tasks."""

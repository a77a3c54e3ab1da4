"""Watching a served collection: counts of its traffic, drift of its queries, probes of its recall, and a verdict on each."""

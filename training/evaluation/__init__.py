"""Honest numbers: folds, baselines, metrics, their uncertainty and the report."""

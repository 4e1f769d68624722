"""Scans and tables -> a data set."""

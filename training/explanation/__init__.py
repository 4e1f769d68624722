"""What a model reads: attention, and how stable it is."""

"""Conversion between the research code's checkpoints and Hugging Face folders; run by maintainers, not installed."""

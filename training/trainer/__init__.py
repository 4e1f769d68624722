"""Data set -> trained model: both stages on one loop."""

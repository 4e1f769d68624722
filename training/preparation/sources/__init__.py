"""Where scans come from: one module per kind of input, all of them giving `Source`s."""

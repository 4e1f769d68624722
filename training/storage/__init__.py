"""Finished files: written whole, locked while they are written, with checksums, and compared before they are read."""

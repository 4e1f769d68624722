"""Speed and memory, measured against the same network built from PyTorch's own parts."""

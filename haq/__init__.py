"""Hardware-aware mixed-precision search for PyTorch models."""

"""Whole rounds in one process, on a simulated network: for `secure_mean`, the tests and `simulate`."""

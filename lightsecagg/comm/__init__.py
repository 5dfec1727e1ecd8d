"""Frames of bytes between named peers; knows nothing of the protocol."""

"""Asynchronous runs, measured: time to an accuracy, accuracy under masks, and what an update costs."""

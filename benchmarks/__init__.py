"""Measurements; every claim of speed or size in this project comes from here."""

"""Exact modular matrix products, fast: one interface, one module for each way to compute it."""

from .blas import ModularMatrix

__all__ = ["ModularMatrix"]

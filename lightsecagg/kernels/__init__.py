"""Exact modular matrix products, fast: one interface, one module for each way to compute it."""

from lightsecagg.kernels.blas import ModularMatrix

__all__ = ["ModularMatrix"]

"""Arithmetic on long vectors and matrices over GF(p), exact and fast; it knows of nothing but numbers."""

from lightsecagg.kernels.interface import Loops, loops
from lightsecagg.kernels.matrix import ModularMatrix, Product, modular_matrix, use_device
from lightsecagg.kernels.workers import set_threads, spread

__all__ = [
    "Loops",
    "ModularMatrix",
    "Product",
    "loops",
    "modular_matrix",
    "set_threads",
    "spread",
    "use_device",
]

"""Lagrange interpolation as a matrix: from a polynomial's values at some points to its values at others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightsecagg.field import Elements, PrimeField


def interpolation_matrix(field: PrimeField, known: Sequence[int], wanted: Sequence[int]) -> Elements:
    """The matrix L with f(wanted) = L · f(known) for every polynomial f of degree < len(known).

    L[j, k] = ∏_{l≠k} (w_j − x_l) / (x_k − x_l), in its barycentric form P_j · b_k / (w_j − x_k).

    Args:
        known: distinct points, below p.
        wanted: points, none of them among ``known``.

    Returns:
        (len(wanted), len(known)) uint32.
    """
    known_points, wanted_points = field.elements(known), field.elements(wanted)
    differences = field.subtract(wanted_points[:, None], known_points[None, :])
    whole = _row_products(field, differences)
    among = field.subtract(known_points[:, None], known_points[None, :])
    np.fill_diagonal(among, 1)
    barycentric = field.invert(_row_products(field, among))
    numerators = field.multiply(whole[:, None], barycentric[None, :])
    distinct, places = np.unique(differences, return_inverse=True)  # few: the points are small integers
    return field.multiply(numerators, field.invert(distinct)[places].reshape(differences.shape))


def _row_products(field: PrimeField, matrix: Elements) -> Elements:
    while matrix.shape[1] > 1:
        half = matrix.shape[1] // 2
        products = field.multiply(matrix[:, :half], matrix[:, half : 2 * half])
        matrix = np.concatenate([products, matrix[:, 2 * half :]], axis=1)
    return matrix[:, 0]

"""Exact products of matrices over GF(p) in float64 on a device of torch's, cut and bounded as on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from lightsecagg.kernels.interface import Elements
from lightsecagg.kernels.matrix import plan

_CHUNK_BYTES = 2**28  # float64 columns that are on the device at once


class DeviceMatrix:
    """``ModularMatrix`` on a device of torch's, such as ``cuda`` or ``cpu``; its coefficients stay there.

    Its exactness rests on float64 products and sums that round as IEEE 754 says, which CUDA's do.
    """

    def __init__(self, order: int, weights: Elements, device: str) -> None:
        self.order = order
        self.shape: tuple[int, int] = (weights.shape[0], weights.shape[1])
        self._device = torch.device(device)
        self._blocks = [
            (
                block.start,
                block.stop,
                self._reals(block.low),
                None if block.high is None else self._reals(block.high),
            )
            for block in plan(order, weights)
        ]
        self._columns = max(_CHUNK_BYTES // 8 // sum(self.shape), 1)

    def _reals(self, half: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(half).to(self._device)

    def product(self, data: Elements, out: Elements | None = None, at: int = 0) -> Elements:
        """W · data, as ``ModularMatrix.product``."""
        assert data.shape[0] == self.shape[1], "the data's rows must be the matrix's columns"
        result = np.empty((self.shape[0], data.shape[1]), dtype=np.uint32) if out is None else out
        for start in range(0, data.shape[1], self._columns):
            chunk = np.ascontiguousarray(data[:, start : start + self._columns])
            found = self._multiply(self._centered(chunk)).cpu().numpy().view(np.uint32)
            result[:, at + start : at + start + chunk.shape[1]] = found
        return result

    def _centered(self, chunk: Elements) -> torch.Tensor:
        # torch computes little with uint32: the words travel as int32, those from 2^31 on as negative ones.
        reals = torch.from_numpy(chunk.view(np.int32)).to(self._device).to(torch.float64)
        reals = torch.where(reals < 0, reals + float(2**32), reals)
        return torch.where(reals > self.order // 2, reals - float(self.order), reals)

    def _multiply(self, centered: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(self.shape[0], centered.shape[1], dtype=torch.float64, device=self._device)
        for start, stop, low, high in self._blocks:
            part = low @ centered[start:stop]
            if high is not None:
                part += self._reduced(high @ centered[start:stop]) * 2.0**16
            total = self._reduced(total + part)
        return total.to(torch.int64).to(torch.int32)

    def _reduced(self, values: torch.Tensor) -> torch.Tensor:
        """As ``portable._reduce``, with its bounds."""
        values = values - torch.round(values * (1.0 / self.order)) * float(self.order)
        return torch.where(values < 0, values + float(self.order), values)

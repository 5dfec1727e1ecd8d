"""The configuration file: FedML's sections and keys, ours beside them, read and checked."""

from lightsecagg.settings.load import load
from lightsecagg.settings.schema import Settings

__all__ = ["Settings", "load"]

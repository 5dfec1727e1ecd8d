"""Fixtures that several rooms share."""

from tests.brokers import mosquitto

__all__ = ["mosquitto"]

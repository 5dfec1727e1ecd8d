"""Who is told what happens in a run: the screen, the event log, and services behind extras."""

from lightsecagg.tracking.events import Broadcast, Event, Tracker

__all__ = ["Broadcast", "Event", "Tracker"]

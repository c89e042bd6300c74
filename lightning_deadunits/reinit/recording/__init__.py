"""Records one pass of the user's code, and replays it: nothing of the user's runs again."""

from lightning_deadunits.reinit.recording.recorder import Recorder
from lightning_deadunits.reinit.recording.tape import Call, Obstacle, SiteCall, Tape

__all__ = ["Call", "Obstacle", "Recorder", "SiteCall", "Tape"]

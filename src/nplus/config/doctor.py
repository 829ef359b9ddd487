"""What a run looks for by itself."""

from __future__ import annotations

from nplus.config.base import Config


class DoctorConfig(Config):
    """`nplus doctor` during a run. Changes no result, so it stands in no stage's key."""

    enabled: bool = True
    """Look at the machine, the settings, the text, the networks and every step's curves, and tell
    what is wrong."""

"""Explorers: the three-response laboratory, and controls that rerun a notebook's small experiment.

They need `pip install 'dapedu[book]'`, as the notebooks do.
"""

from dapedu.explore.controls import Controls
from dapedu.explore.laboratory import Laboratory

__all__ = ["Controls", "Laboratory"]

"""Explorers: the three-response laboratory, the losses on one pair, and controls that rerun a small experiment.

They need what the notebooks need: `pip install '.[book]'` in a copy of the project.
"""

try:
    from dapedu.explore.controls import Controls
    from dapedu.explore.laboratory import Laboratory
    from dapedu.explore.losses import LossExplorer
except ModuleNotFoundError as missing:
    if missing.name not in {"anywidget", "ipywidgets", "matplotlib", "traitlets"}:
        raise
    advice = "in a copy of the project: pip install '.[book]'"
    raise ModuleNotFoundError(f"dapedu.explore needs {missing.name}; {advice}", name=missing.name) from missing

__all__ = ["Controls", "Laboratory", "LossExplorer"]

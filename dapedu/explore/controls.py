"""Sliders and menus that rerun a notebook's small experiment, and a plain figure where no kernel runs."""

import base64
import io
from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox


class Controls:
    """A figure with controls: shown as such in a notebook with a kernel, as a plain figure elsewhere.

    Args:
        draw: a function of keyword values that returns a figure; it should take less than 200 ms.
        widgets: by keyword, an ipywidgets control, or what `ipywidgets.interactive` makes one from.

    Raises:
        TypeError: draw does not return a figure.
    """

    def __init__(self, draw: Callable[..., Figure], **widgets: Any) -> None:
        self._draw = draw
        self._places: list[Bbox] = []
        self._picture = ipywidgets.Image(format="png")
        self.controls = ipywidgets.interactive(self._update, **widgets)
        for widget in self.controls.kwargs_widgets:
            widget.style.description_width = "initial"  # names in full
        # Drawn once from here, where an error reaches the caller; later ones show below the picture.
        self._update(**{widget._kwarg: widget.get_interact_value() for widget in self.controls.kwargs_widgets})
        self._panel = ipywidgets.VBox([*self.controls.kwargs_widgets, self._picture, self.controls.out])

    def _update(self, **values: Any) -> None:
        figure = self._draw(**values)
        if not isinstance(figure, Figure):
            raise TypeError(f"Controls: draw returned a {type(figure).__name__}, expected a matplotlib Figure")
        # Laid out once: the axes stand still while a slider moves, and a redraw takes two thirds of the time.
        if len(self._places) == len(figure.axes):
            figure.set_layout_engine("none")
            for axis, place in zip(figure.axes, self._places, strict=True):
                axis.set_position(place)
        png = io.BytesIO()
        figure.savefig(png, format="png")
        self._places = [axis.get_position() for axis in figure.axes]
        plt.close(figure)
        self._picture.value = png.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        # The book prefers the picture, JupyterLab the widget: each takes from the bundle what it can make work.
        picture = base64.b64encode(self._picture.value).decode()
        return {**self._panel._repr_mimebundle_(), "image/png": picture, "text/plain": "Controls()"}

"""The book's figures: one colour a method, two sizes, labels at the ends of lines."""

import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dapedu.evaluate import Calibration, mean_interval

# Okabe–Ito: told apart by readers with any colour vision. Line styles and labels say it again.
# Of the methods that came after, those with a reference are dark and cool, those without one brown.
COLORS = {
    "DPO": "#0072B2",
    "IPO": "#56B4E9",
    "SLiC-HF": "#009E73",
    "RRHF": "#E69F00",
    "CLICK": "#CC79A7",
    "SPIN": "#D55E00",
    "PPO": "#000000",
    "KTO": "#6A3D9A",
    "robust DPO": "#08306B",
    "online DPO": "#4B7FA8",
    "ORPO": "#7F3B08",
    "SimPO": "#B3741C",
    "reference": "#7F7F7F",
}
WIDE, TALL = (7.2, 2.8), (7.2, 5.4)  # inches
LINE_STYLES = ("-", "--", ":")  # of the responses a, b, c; of chosen, rejected, neither


class BanditPanel(NamedTuple):
    """One panel of `bandit_grid`: one dataset, method and strength, all its seeds."""

    title: str
    method: str  # a key of COLORS
    probabilities: Tensor  # (seeds, records, n_responses)
    steps: Tensor  # (records,)
    limit: Tensor  # where π should end, shape (n_responses,)


class Curve(NamedTuple):
    """One line of `frontier`: a method at several strengths, all its seeds."""

    name: str  # written behind the last point; "" for none
    method: str  # a key of COLORS
    kl: Tensor  # KL(π‖π_ref) in nats, (seeds, strengths)
    rewards: Tensor  # (seeds, strengths)
    line: str = "-"  # as matplotlib writes it; "" for points alone
    marker: str = "o"  # "" for none
    notes: Sequence[str] = ()  # what to write at each strength, "" for nothing; none if empty
    shift: tuple[float, float] = (6, 0)  # where the name starts, from the last point, in points
    note_shift: tuple[float, float] = (0, 6)  # where a note's middle is, from its point, in points

    @classmethod
    def of(
        cls,
        name: str,
        method: str,
        results: Mapping[str, Mapping[str, Sequence[float]]],
        *,
        reward: str = "reward",
        **looks: Any,
    ) -> "Curve":
        """A curve from a stored result.

        Args:
            name, method: of the curve.
            results: for each strength, in the order in which the line goes, the lists of `kl` and of the reward over
                the seeds.
            reward: what the reward is called there.
            looks: the other fields.

        Returns:
            `Curve`.
        """
        kl, rewards = (
            torch.tensor([row[key] for row in results.values()], dtype=torch.float64).T for key in ("kl", reward)
        )
        return cls(name, method, kl, rewards, **looks)


def use_style() -> None:
    """Load the book's style; every notebook calls it once, before its first figure."""
    plt.style.use(str(files("dapedu") / "book.mplstyle"))


def bandit_grid(rows: Sequence[Sequence[BanditPanel]], *, names: Sequence[str] = "abc") -> Figure:
    """Probability of each response over training, in rows of panels that share their axes.

    Lines are means over the seeds, bands their 95 % intervals, diamonds the closed form.

    Args:
        rows: the panels, each row of the same length.
        names: what the responses are called.

    Returns:
        The figure.

    Raises:
        ValueError: a panel has another number of responses than there are names, or line styles to tell them apart.
    """
    for panel in itertools.chain(*rows):
        n_responses = panel.probabilities.shape[-1]
        if not n_responses == len(names) <= len(LINE_STYLES):
            raise ValueError(
                f"bandit_grid: {panel.title!r} has {n_responses} responses and {len(names)} names, "
                f"expected the same number, at most {len(LINE_STYLES)}"
            )
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=TALL if len(rows) > 1 else WIDE, sharex=True, sharey=True, squeeze=False
    )
    for panels, row_axes in zip(rows, axes, strict=True):
        for panel, axis in zip(panels, row_axes, strict=True):
            _draw_panel(axis, panel, names)
        row_axes[0].set_ylabel("probability")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return figure


def _draw_panel(axis: Axes, panel: BanditPanel, names: Sequence[str]) -> None:
    mean, half_width = (part.numpy()[1:] for part in mean_interval(panel.probabilities))  # no step 0 on a log axis
    steps, color = panel.steps.numpy()[1:], COLORS[panel.method]
    for response, style in enumerate(LINE_STYLES[: len(names)]):
        center, spread = mean[:, response], half_width[:, response]
        axis.plot(steps, center, style, color=color)
        axis.fill_between(steps, center - spread, center + spread, color=color, alpha=0.25, linewidth=0)
    axis.plot([steps[-1]] * len(names), panel.limit, "D", color="black", markersize=3.5, clip_on=False, zorder=3)
    axis.set(title=panel.title, xscale="log", xlim=(steps[0], steps[-1]), ylim=(-0.03, 1.03))
    axis.minorticks_off()  # nobody reads them, and they cost half the drawing
    label_ends(axis, steps[-1] * 1.25, mean[-1], names)


def frontier(axis: Axes, curves: Sequence[Curve], *, reference: Tensor | None = None) -> None:
    """Reward against KL: each curve's mean over the seeds at each strength, its seeds as thin lines.

    Args:
        axis: where to draw.
        curves: first to last, later ones on top.
        reference: the reference's reward, (seeds,): a square at KL 0.

    Raises:
        ValueError: a curve's shapes do not fit each other, or it has another number of notes than of strengths.
    """
    for curve in curves:
        if curve.kl.ndim != 2 or curve.kl.shape != curve.rewards.shape:
            raise ValueError(
                f"frontier: {curve.name!r} has kl of shape {tuple(curve.kl.shape)} and rewards of shape "
                f"{tuple(curve.rewards.shape)}, expected the same, (seeds, strengths)"
            )
        if curve.notes and len(curve.notes) != curve.kl.shape[1]:
            raise ValueError(
                f"frontier: {curve.name!r} has {len(curve.notes)} notes, expected {curve.kl.shape[1]}, one a strength"
            )
        color = COLORS[curve.method]
        if curve.line:
            axis.plot(curve.kl.T, curve.rewards.T, curve.line, color=color, linewidth=0.5, alpha=0.4)
        kl, rewards = curve.kl.mean(dim=0), curve.rewards.mean(dim=0)
        axis.plot(kl, rewards, linestyle=curve.line, marker=curve.marker, color=color, markersize=3.5)
        points = list(zip(kl.tolist(), rewards.tolist(), strict=True))
        for point, note in zip(points, curve.notes, strict=False):
            _write_at(axis, note, point, curve.note_shift, ha="center", fontsize=7)
        _write_at(axis, curve.name, points[-1], curve.shift, color=color)
    if reference is not None:
        axis.plot(0, reference.mean(), "s", color="black", markersize=5, zorder=3)
    axis.set(xlabel="KL(π‖π_ref) (nats)", ylabel="expected reward")


def _write_at(axis: Axes, text: str, point: tuple[float, float], shift: tuple[float, float], **looks: Any) -> None:
    axis.annotate(text, point, xytext=shift, textcoords="offset points", va="center", **{"fontsize": 8} | looks)


def label_ends(axis: Axes, x: float, heights: Sequence[float], names: Sequence[str], *, gap: float = 0.09) -> None:
    """Name lines at their right ends; names pushed apart that would overlap, joined where the lines do.

    Args:
        axis: where the lines are.
        x: where the names start, in data units.
        heights: where the lines end, in data units.
        names: what to write.
        gap: least distance of two names, as a share of the axis' height.
    """
    bottom, top = axis.get_ylim()
    least = gap * (top - bottom)
    labels: list[tuple[float, str]] = []  # lowest first; lines that end together share one
    for index in np.argsort(heights, kind="stable"):
        if labels and heights[index] - labels[-1][0] < 0.25 * least:
            labels[-1] = (labels[-1][0], ", ".join(sorted([*labels[-1][1].split(", "), names[index]])))
        else:
            labels.append((float(heights[index]), names[index]))
    places = [height for height, _ in labels]
    for upper in range(1, len(places)):
        places[upper] = max(places[upper], places[upper - 1] + least)
    for place, (_, label) in zip(places, labels, strict=True):
        axis.text(x, place, label, va="center", fontsize=8, clip_on=False)


def simplex(axis: Axes, *, names: Sequence[str] = "abc") -> None:
    """Draw the triangle whose points are the distributions over three responses.

    Args:
        axis: an empty axis.
        names: the corners, where the response has probability 1: left, right, top.
    """
    corners = to_simplex(np.eye(3))
    axis.fill(*corners.T, facecolor="#fafafa", edgecolor="#999999", linewidth=0.8, zorder=0)
    for level in (0.25, 0.5, 0.75):
        for corner in range(3):
            ends = np.full((2, 3), 0.0)
            ends[:, corner] = level
            ends[0, (corner + 1) % 3] = ends[1, (corner + 2) % 3] = 1 - level
            axis.plot(*to_simplex(ends).T, color="#e6e6e6", linewidth=0.6, zorder=1)
    for (x, y), name, (dx, dy) in zip(corners, names, ((-8, -8), (8, -8), (0, 8)), strict=True):
        axis.annotate(name, (x, y), xytext=(dx, dy), textcoords="offset points", ha="center", va="center")
    axis.set(xlim=(-0.08, 1.08), ylim=(-0.08, 0.95), aspect="equal")
    axis.axis("off")


def to_simplex(probabilities: np.ndarray | Tensor) -> np.ndarray:
    """Where distributions over three responses lie in the triangle of `simplex`.

    Args:
        probabilities: shape (..., 3).

    Returns:
        Coordinates, shape (..., 2).
    """
    return np.asarray(probabilities) @ np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def calibration(axis: Axes, found: Calibration, *, color: str = "black", name: str = "") -> None:
    """How often a reward model was right against how sure it was; on the diagonal it is as sure as it is right.

    Args:
        axis: where to draw; several models may share it.
        found: of `dapedu.evaluate.calibration`; a point's area is its share of the pairs.
        color: of the points.
        name: written beside the last point; "" for none.
    """
    axis.plot([0.5, 1], [0.5, 1], color="#999999", linewidth=0.8, zorder=0)
    axis.plot(found.confidence, found.accuracy, color=color, linewidth=0.8)
    axis.scatter(found.confidence, found.accuracy, s=300 * found.counts / found.counts.sum(), color=color, linewidth=0)
    _write_at(axis, name, (found.confidence[-1].item(), found.accuracy[-1].item()), (8, -8), color=color)
    axis.set(xlabel="predicted probability", ylabel="share that was right", xlim=(0.48, 1.02))

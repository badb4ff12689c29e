"""The figures refuse what they would draw wrongly."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from dapedu import plots
from dapedu.evaluate import Calibration

matplotlib.use("Agg")


def panel(n_responses: int) -> plots.BanditPanel:
    policy = torch.full((2, 3, n_responses), 1 / n_responses)
    return plots.BanditPanel("title", "DPO", policy, torch.tensor([0, 10, 20]), policy[0, 0])


def test_a_grid_draws_a_line_and_a_limit_for_each_response():
    plots.use_style()
    figure = plots.bandit_grid([[panel(3), panel(3)]])
    assert [len(axis.lines) for axis in figure.axes] == [4, 4]  # a, b, c, and their limits
    assert figure.axes[0].texts[0].get_text() == "a, b, c"  # lines that end together share a name


@pytest.mark.parametrize(("n_responses", "names"), [(4, "abcd"), (4, "abc"), (2, "abc")])
def test_a_response_that_would_get_no_line_is_refused(n_responses, names):
    with pytest.raises(ValueError, match=f"'title' has {n_responses} responses and {len(names)} names"):
        plots.bandit_grid([[panel(n_responses)]], names=names)


def test_names_at_the_ends_of_lines_do_not_overlap():
    plots.use_style()
    axis = plots.bandit_grid([[panel(3)]]).axes[0]
    before = len(axis.texts)
    plots.label_ends(axis, 20, [0.50, 0.53, 0.9], "xyz")
    heights = sorted(text.get_position()[1] for text in axis.texts[before:])
    bottom, top = axis.get_ylim()
    assert all(upper - lower >= 0.089 * (top - bottom) for lower, upper in itertools.pairwise(heights))


def test_corners_of_the_simplex_are_certainties():
    corners = plots.to_simplex(torch.eye(3))
    assert corners[:2].tolist() == [[0, 0], [1, 0]]
    assert corners[2].tolist() == pytest.approx([0.5, 3**0.5 / 2])


STORED = {  # two strengths, two seeds
    "2": {"kl": [0.1, 0.3], "gold": [1.0, 3.0]},
    "1": {"kl": [0.5, 0.9], "gold": [4.0, 6.0]},
}


def curve(**looks) -> plots.Curve:
    return plots.Curve.of("a name", "DPO", STORED, reward="gold", **looks)


def test_a_frontier_draws_each_seed_and_on_top_their_mean():
    """Oracle: means of two numbers, in the head."""
    axis = plt.figure().subplots()
    plots.frontier(axis, [curve(notes=("", "β = 1"))], reference=torch.tensor([0.0, 1.0]))
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines[:2]]
    assert drawn == [([0.1, 0.5], [1, 4]), ([0.3, 0.9], [3, 6])]
    mean, reference = axis.lines[2:]
    assert mean.get_xdata().tolist() == pytest.approx([0.2, 0.7])
    assert mean.get_ydata().tolist() == [2, 5]
    assert reference.get_ydata() == [0.5]
    names = {text.get_text(): text.xy for text in axis.texts if text.get_text()}
    assert names == {"β = 1": pytest.approx((0.7, 5)), "a name": pytest.approx((0.7, 5))}


def test_points_without_a_line_have_no_lines_of_seeds():
    axis = plt.figure().subplots()
    plots.frontier(axis, [curve(line="")])
    assert [line.get_linestyle() for line in axis.lines] == ["None"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (curve()._replace(kl=torch.zeros(2, 3)), r"'a name' has kl of shape \(2, 3\) and rewards of shape \(2, 2\)"),
        (curve(notes=("β = 1",)), "'a name' has 1 notes, expected 2"),
    ],
)
def test_a_curve_that_does_not_fit_itself_is_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        plots.frontier(plt.figure().subplots(), [wrong])


def test_a_calibration_is_a_point_a_bin_whose_area_is_its_pairs():
    """Oracle: the numbers given; three quarters of the pairs have three times the area of one."""
    axis = plt.figure().subplots()
    bins = torch.tensor([[0.6, 0.9], [0.5, 0.8]]).double()
    plots.calibration(axis, Calibration(*bins, torch.tensor([3, 1]), 0.1), name="two epochs")
    (points,) = axis.collections
    assert points.get_offsets().tolist() == [pytest.approx([0.6, 0.5]), pytest.approx([0.9, 0.8])]
    assert points.get_sizes()[0] == pytest.approx(3 * points.get_sizes()[1])
    assert list(axis.lines[0].get_xdata()) == list(axis.lines[0].get_ydata()) == [0.5, 1]
    assert axis.texts[0].get_text() == "two epochs"
    assert axis.texts[0].xy == pytest.approx((0.9, 0.8))

"""What a loss says when it is called wrongly."""

import math

import pytest
import torch

from dapedu.losses import (
    dpo_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    rrhf_loss,
)
from tests.loss_cases import (
    CASES,
    FOUR,
    Case,
    draw,
    each_loss,
    rows,
)

torch.set_num_threads(1)

TENSORS = [(case, name) for case in CASES.values() for name in draw(case, n=1)]


def argument_id(value):
    return value.loss.__name__ if isinstance(value, Case) else str(value)


each_tensor = pytest.mark.parametrize(("case", "name"), TENSORS, ids=argument_id)


def message_of(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case, name in TENSORS if name != next(iter(draw(case, n=1)))],
    ids=argument_id,
)
def test_a_shape_that_differs_is_named(case, name):
    """Oracle: function, argument and both shapes stand in the message, and nothing else."""
    batch = draw(case, n=4)
    shape = tuple(batch[name].shape)
    batch[name] = batch[name][:3]
    with pytest.raises(ValueError, match="shape") as error:
        case.loss(**batch, **case.strengths)
    other = (3, *shape[1:])
    assert message_of(error) == f"{case.loss.__name__}: {name} has shape {other}, expected {shape}"


@pytest.mark.parametrize("name", FOUR[1:])
def test_shapes_that_would_broadcast_are_refused(name):
    """Oracle: (4,) against (4, 1) would give 16 losses for four pairs."""
    batch = draw(CASES["dpo"], n=4)
    batch[name] = batch[name][:, None]
    with pytest.raises(ValueError, match=rf"^dpo_loss: {name} has shape \(4, 1\), expected \(4,\)$"):
        dpo_loss(**batch, beta=0.1)


def test_rrhf_wants_prompts_by_candidates():
    """Oracle: the message names the shape it got and the one it wants."""
    batch = {name: tensor[0] for name, tensor in draw(CASES["rrhf"]).items()}
    with pytest.raises(ValueError, match="candidate_logps") as error:
        rrhf_loss(**batch, sft_weight=1.0)
    assert message_of(error) == "rrhf_loss: candidate_logps has shape (4,), expected (prompts, k)"


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 0), (2, 4, 3)])
def test_plackett_luce_wants_rankings_of_at_least_two(shape):
    """Oracle: function, argument and both shapes stand in the message; a ranking of one ranks nothing."""
    with pytest.raises(ValueError, match="shape") as error:
        plackett_luce_loss(ranked_rewards=torch.zeros(shape))
    assert message_of(error) == f"plackett_luce_loss: ranked_rewards has shape {shape}, expected (rankings, k), k ≥ 2"


@each_tensor
def test_a_list_is_refused(case, name):
    """Oracle: function, argument and type stand in the message."""
    batch = draw(case, n=4)
    batch[name] = batch[name].tolist()
    with pytest.raises(TypeError) as error:
        case.loss(**batch, **case.strengths)
    assert message_of(error) == f"{case.loss.__name__}: {name} is a list, expected a torch.Tensor"


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case, name in TENSORS if name in case.floats], ids=argument_id
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_whole_numbers_for_log_probabilities_are_refused(case, name, dtype):
    """Oracle: function, argument and dtype stand in the message (token ids passed for log-probabilities)."""
    batch = draw(case, n=4)
    batch[name] = batch[name].to(dtype)
    with pytest.raises(TypeError) as error:
        case.loss(**batch, **case.strengths)
    assert message_of(error) == f"{case.loss.__name__}: {name} has dtype {dtype}, expected floats"


STRENGTHS = [(case, name) for case in CASES.values() for name in case.strengths]
POSITIVE = [(case, name) for case, name in STRENGTHS if name in {"beta", "tau"}]
NOT_NEGATIVE = [(case, name) for case, name in STRENGTHS if name not in {"beta", "tau", "flip"}]


@pytest.mark.parametrize(("case", "name"), POSITIVE, ids=argument_id)
@pytest.mark.parametrize("value", [0, 0.0, -0.1, math.nan])
def test_beta_and_tau_must_be_positive(case, name, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=name) as error:
        case.loss(**draw(case), **{**case.strengths, name: value})
    assert message_of(error) == f"{case.loss.__name__}: {name} is {value}, expected > 0"


@pytest.mark.parametrize(("case", "name"), NOT_NEGATIVE, ids=argument_id)
@pytest.mark.parametrize("value", [-1, -0.1, math.nan])
def test_margins_and_weights_must_not_be_negative(case, name, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=name) as error:
        case.loss(**draw(case), **{**case.strengths, name: value})
    assert message_of(error) == f"{case.loss.__name__}: {name} is {value}, expected ≥ 0"


@pytest.mark.parametrize(("case", "name"), NOT_NEGATIVE, ids=argument_id)
def test_margins_and_weights_may_be_zero(case, name):
    """Oracle: the plain Python formula at 0."""
    batch, strengths = draw(case), {**case.strengths, name: 0.0}
    expected = [case.value(**row, **strengths) for row in rows(batch)]
    torch.testing.assert_close(case.loss(**batch, **strengths), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("case", "name"), STRENGTHS, ids=argument_id)
def test_one_bad_entry_of_a_strength_tensor_is_enough(case, name):
    """Oracle: the same rule for every entry."""
    values = torch.full((4,), 0.5)
    values[2] = -0.5
    with pytest.raises(ValueError, match=rf"^{case.loss.__name__}: {name} is tensor"):
        case.loss(**draw(case, n=4), **{**case.strengths, name: values})


@pytest.mark.parametrize("flip", [-0.1, 0.5, 0.9, math.nan])
def test_the_share_of_turned_labels_is_below_a_half(flip):
    """Oracle: at ½ a label says nothing, and the correction divides by 0."""
    with pytest.raises(ValueError, match="flip") as error:
        robust_dpo_loss(**draw(CASES["robust_dpo"]), beta=0.4, flip=flip)
    assert message_of(error) == f"robust_dpo_loss: flip is {flip}, expected from 0 to below 0.5"


@pytest.mark.parametrize("length", [0, -3])
def test_rrhf_lengths_must_be_positive(length):
    """Oracle: a division by zero or by a negative length would silently reorder the candidates."""
    batch = draw(CASES["rrhf"])
    batch["candidate_lengths"][5, 2] = length
    with pytest.raises(ValueError, match=r"^rrhf_loss: candidate_lengths is .*expected > 0$"):
        rrhf_loss(**{name: tensor[5:6] for name, tensor in batch.items()}, sft_weight=1.0)


@each_loss
def test_arguments_have_names_and_no_defaults(case):
    """Oracle: tensors of one type must not be swappable, and a hyperparameter belongs to the caller."""
    batch = draw(case)
    with pytest.raises(TypeError, match="positional"):
        case.loss(*batch.values(), **case.strengths)
    for name in [*batch, *case.strengths]:
        others = {key: value for key, value in (batch | case.strengths).items() if key != name}
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            case.loss(**others)


@pytest.mark.parametrize("value", ["0.1", None, [0.1, 0.2]])
@pytest.mark.parametrize(("case", "name"), STRENGTHS, ids=argument_id)
def test_a_strength_is_a_number_or_a_tensor(case, name, value):
    """Oracle: function and argument stand in the message, and what came."""
    with pytest.raises(TypeError) as error:
        case.loss(**draw(case), **case.strengths | {name: value})
    assert message_of(error) == f"{case.loss.__name__}: {name} is {value!r}, expected a number or a torch.Tensor"

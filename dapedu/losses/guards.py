"""What every loss asks of its arguments, and the margin that several of them share."""

import torch
from torch import Tensor

Strength = float | Tensor


def log_ratio_margin(
    function: str,
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> Tensor:
    """h = (log π − log π_ref)(y_w) − (log π − log π_ref)(y_l) in nats, without β."""
    require_same_shape(
        function,
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)


def require_same_shape(function: str, floating: set[str] | None = None, **tensors: Tensor) -> None:
    """The one guard of all losses; `floating` names the arguments that must be floats (default: all)."""
    expected = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if (floating is None or name in floating) and not tensor.is_floating_point():
            raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected floats")
        expected = tensor.shape if expected is None else expected
        if tensor.shape != expected:
            raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def require_positive(function: str, **values: Strength) -> None:
    for name, value in values.items():
        require_number(function, name, value)
        if not torch.as_tensor(value > 0).all():
            raise ValueError(f"{function}: {name} is {value}, expected > 0")


def require_not_negative(function: str, **values: Strength) -> None:
    for name, value in values.items():
        require_number(function, name, value)
        if not torch.as_tensor(value >= 0).all():
            raise ValueError(f"{function}: {name} is {value}, expected ≥ 0")


def require_number(function: str, name: str, value: Strength) -> None:
    if not isinstance(value, int | float | Tensor):
        raise TypeError(f"{function}: {name} is {value!r}, expected a number or a torch.Tensor")

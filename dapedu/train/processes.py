"""Several processes that take one process's steps: who reads which rows, and how what they find is put together.

Each process holds the whole model and reads its share of every batch; DistributedDataParallel averages their gradients.
With one process, which is the common case, everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> PartialState:
    """What accelerate knows of this process: its number among how many, and its device.

    Raises:
        ValueError: it was started with FSDP or DeepSpeed, which cut the model itself to pieces.
    """
    from accelerate import PartialState

    for plugin in ("FSDP", "DEEPSPEED"):  # as accelerate launch says it
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false") == "true":
            raise ValueError(
                f"started with {plugin}, but each process here needs the whole model: launch with --multi_gpu; if the "
                "model does not fit on one device, train adapters (--lora-rank), or take a trainer that shards, such "
                "as TRL's, which reads the same data and folders"
            )
    # Without a GPU, accelerate takes several processes for lonely ones unless it is told that the CPU is meant.
    on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    return PartialState(cpu=True) if on_cpu else PartialState()


class Processes:
    """This process among those that `torchrun` or `accelerate launch` started."""

    def __init__(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        this_process()  # once it knows its device, the accelerator asks it
        self.accelerator = Accelerator(
            mixed_precision="bf16" if torch.cuda.is_available() else "no",
            # Or each gradient would stand twice in memory, where it is and where it is exchanged.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.device = self.accelerator.device
        self.number = self.accelerator.num_processes
        self.leads = self.accelerator.is_main_process

    def share(self, rows: Sequence[int]) -> tuple[list[int], float]:
        """This process's rows of a batch.

        Args:
            rows: the whole batch's.

        Returns:
            The rows, at least one; and their share of the batch, by which means over them count: 0 if the batch has
            fewer rows than there are processes and this one only keeps the others company.
        """
        mine = list(rows[self.accelerator.process_index :: self.number])
        return (mine, len(mine) / len(rows)) if mine else ([rows[0]], 0.0)

    def together(self, values: Mapping[str, float], share: float) -> dict[str, float]:
        """Means over the whole batch from each process's means over its share.

        Args:
            values: this process's means.
            share: from `share`.

        Returns:
            The same names, the same numbers in every process.
        """
        if self.number == 1:
            return dict(values)
        mine = torch.tensor(list(values.values()), device=self.device) * share
        # A number that is not finite must reach the others also from a share of 0.
        return dict(zip(values, self.add(mine).tolist(), strict=True))

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over processes.

        Args:
            tensor: of the same shape in each.

        Returns:
            The sum, on the same device.
        """
        if self.number == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.device), "sum").to(tensor.device)

    def exchange(self, scorer: nn.Module, *, now: bool) -> AbstractContextManager[None]:
        """Whether a backward pass ends with averaging the gradients: only a batch's last part needs it.

        Args:
            scorer: the prepared model.
            now: after this part.

        Returns:
            What to do the forward and the backward pass in.
        """
        return contextlib.nullcontext() if now else self.accelerator.no_sync(scorer)


def trained(model: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that training changes: all of them, or the adapters."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)

"""What survives an interruption: weights, optimiser and random states in one safetensors file, renamed when whole."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_KEPT = 2  # checkpoints: the last one, and one in case its disk block is bad
_ASKED = "run.json"
_CHECKPOINT = re.compile(r"checkpoint-[0-9]{8}\.safetensors")


class RunError(RuntimeError):
    """A run's folder cannot be used as asked; the message says what to do."""


class Run:
    """A run's folder: `run.json` (what was asked), `log.csv`, checkpoints, and at the end `model/`.

    Args:
        folder: made if missing.
        asked: settings and fingerprints of model and data, which a resumed run must share.
        resume: go on from the last checkpoint, if there is one.

    Raises:
        RunError: as `require_usable`, or the folder holds a run that was asked something else, or cannot be written.
    """

    def __init__(self, folder: str | Path, *, asked: dict[str, Any], resume: bool) -> None:
        self.folder = Path(folder)
        asked = json.loads(json.dumps(asked))  # as it will read back: tuples are lists
        before = require_usable(self.folder, resume=resume)
        if before is not None and resume:
            was, now = _flat(before), _flat(asked)
            if differing := [name for name in {**was, **now} if was.get(name) != now.get(name)]:
                changes = "; ".join(f"{name} was {was.get(name)}, now {now.get(name)}" for name in differing)
                raise RunError(f"{self.folder} holds a run that was asked something else ({changes})")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)  # it has no rows, but perhaps the header of another run
            text = json.dumps(asked, indent=1, ensure_ascii=False) + "\n"
            _write(self.folder / _ASKED, lambda partial: partial.write_text(text, encoding="utf8"))
        except OSError as error:
            raise RunError(f"{self.folder} cannot be written ({error.strerror}); choose another folder") from None

    @property
    def log(self) -> Path:
        """The table of what was logged."""
        return self.folder / "log.csv"

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.folder / "model"

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, then drop all but the last two.

        Args:
            step: optimiser steps done.
            model, optimizer: as they are after that step.
        """
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value for name, value in _weights(model).items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        # Not all of it as one string of bytes first, which would be twice as much again.
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        _write(self.folder / f"checkpoint-{step:08}.safetensors", lambda partial: save_file(content, partial))
        for old in _checkpoints(self.folder)[:-_KEPT]:
            old.unlink()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the last checkpoint's state into model, optimiser and random generators.

        Args:
            model, optimizer: changed in place.

        Returns:
            The step it was saved at; 0, and nothing is changed, if there is none.

        Raises:
            RunError: it cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        checkpoints = _checkpoints(self.folder)
        if not checkpoints:
            return 0
        try:
            tensors = load_file(checkpoints[-1])
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{checkpoints[-1]} cannot be read ({error}); delete it, and --resume goes on from the checkpoint "
                "before, or from the start if there is none"
            ) from None
        with torch.no_grad():
            for name, value in _weights(model).items():
                value.copy_(tensors[f"model.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return int(checkpoints[-1].stem.removeprefix("checkpoint-"))

    def trim_log(self, step: int) -> list[dict[str, float]]:
        """Drop what was logged after the checkpoint that the run goes on from: it will be logged again.

        Args:
            step: the last one to keep.

        Returns:
            What is kept, numbers as the table has them.
        """
        if not self.log.exists():
            return []
        with self.log.open(encoding="utf8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if not header:  # killed before it was written
            self.log.unlink()
            return []
        # A line that a kill cut short has no step, or too few fields.
        kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *kept])
        _write(self.log, lambda partial: partial.write_bytes(text.getvalue().encode()))
        named = [{name: value for name, value in zip(header, row, strict=True) if value} for row in kept]
        return [{name: int(value) if name == "step" else float(value) for name, value in row.items()} for row in named]


def require_usable(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """What was asked of the run that a folder holds, if a run may be started or resumed there.

    A run that was stopped before it logged or saved anything may be started anew.

    Args:
        folder: may be missing.
        resume: whether to go on with a run.

    Returns:
        The content of `run.json`, or None if there is none.

    Raises:
        RunError: it holds a run and resume is false, a damaged `run.json`, or none and files that a run would replace.
    """
    file = folder / _ASKED
    checkpoints = sorted(folder.glob("checkpoint-*.safetensors"))
    done = [*checkpoints, *(path for path in (folder / "log.csv", folder / "model") if path.exists())]
    if not file.exists():
        if done:
            names = ", ".join([path.name for path in done[:3]] + ["…"] * (len(done) > 3))
            raise RunError(f"{folder} holds files of something else ({names}): choose another folder")
        return None
    try:
        asked = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file} cannot be read ({error}): choose another folder") from None
    if not isinstance(asked, dict) or "method" not in asked:
        raise RunError(f"{file} is not what a run writes there: choose another folder")
    if not resume and any(path.name != "log.csv" or _has_rows(path) for path in done):
        raise RunError(f"{folder} already holds a run: resume it (--resume), or choose another folder")
    return asked


def _has_rows(log: Path) -> bool:
    return len(log.read_bytes().splitlines()) > 1


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*.safetensors") if _CHECKPOINT.fullmatch(path.name))


def _flat(asked: dict[str, Any]) -> dict[str, Any]:
    """Strengths and settings one by one, beside the rest."""
    flat: dict[str, Any] = {}
    for key, value in asked.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters with a gradient, a shared one once, and buffers."""
    seen: set[int] = set()
    unique = {}
    for name, value in model.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if id(value) not in seen and not frozen:
            seen.add(id(value))
            unique[name] = value
    return unique


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """A file that is there whole or not at all, also after a power cut."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)

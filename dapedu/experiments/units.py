"""A long experiment as independent units: several at once, each kept when done, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
# In a checkout the project's own results; from an installed package those of the folder one is in.
RESULTS = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / "data" / "results"

_SHOWS_ONLY = {"claims", "cli", "explore", "plots.py"}  # no number depends on them

_asked: set[Path] = set()  # the files of this process's units
_jobs: ContextVar[int] = ContextVar("jobs", default=1)
_spent_before: ContextVar[list[float] | None] = ContextVar("spent_before", default=None)


@contextmanager
def parallel(jobs: int) -> Iterator[list[float]]:
    """Let `run_units` work on several units at once inside the block.

    Args:
        jobs: processes; 1 works in this one.

    Yields:
        The seconds that units took which were found computed, filled as they are found.
    """
    spent_before: list[float] = []
    tokens = _jobs.set(jobs), _spent_before.set(spent_before)
    try:
        yield spent_before
    finally:
        _jobs.reset(tokens[0])
        _spent_before.reset(tokens[1])


def run_units(unit: Callable[..., dict[str, Any]], cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result a case, in the cases' order; those computed before by the same code are read, not computed again.

    Every unit runs on one thread, so that the numbers do not depend on how many run at once.

    Args:
        unit: a module's function; its result holds what JSON holds.
        cases: its keyword arguments.

    Returns:
        What it returned.
    """
    from tqdm.auto import tqdm

    files = [scratch() / f"{unit.__name__}-{_digest(case)}.json" for case in cases]
    _asked.update(files)
    missing = [number for number, file in enumerate(files) if not file.exists()]
    known = [json.loads(file.read_text(encoding="utf8"))["seconds"] for file in files if file.exists()]
    if (spent_before := _spent_before.get()) is not None:
        spent_before.extend(known)
    with tqdm(total=len(cases), initial=len(cases) - len(missing), unit="run", desc=unit.__name__) as bar:
        if min(_jobs.get(), len(missing)) <= 1:
            for number in missing:
                _run_unit(unit, cases[number], files[number])
                bar.update()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(_jobs.get(), len(missing)), context) as pool:
                futures: list[Future[None]] = [
                    pool.submit(_run_unit, unit, cases[number], files[number]) for number in missing
                ]
                try:
                    for future in as_completed(futures):
                        future.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return [json.loads(file.read_text(encoding="utf8"))["result"] for file in files]


def scratch() -> Path:
    """Where unfinished experiments keep units and models: a folder for this version of the package's code.

    Returns:
        The folder, made if missing.
    """
    folder = RESULTS / ".unfinished" / _code_digest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_scratch() -> None:
    """Forget the units that this process asked for, and what other versions of the code have left.

    Units of another experiment, which was interrupted before, stay; with the last unit go the models.
    """
    for file in _asked:
        file.unlink(missing_ok=True)
    _asked.clear()
    for folder in (RESULTS / ".unfinished").glob("*"):
        if folder.name != _code_digest() or not any(folder.glob("*.json")):
            shutil.rmtree(folder, ignore_errors=True)


def _run_unit(unit: Callable[..., dict[str, Any]], case: dict[str, Any], file: Path) -> None:
    threads, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        result = unit(**case)
        record = {"case": case, "seconds": time.perf_counter() - start, "result": result}
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    finally:
        torch.set_num_threads(threads)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(text, encoding="utf8")
    partial.replace(file)


def _digest(case: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _code_digest() -> str:
    """Of the modules and libraries that compute: a unit of other code is no use."""
    digest = hashlib.sha256(f"{sys.version} {torch.__version__}".encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.relative_to(_PACKAGE).parts[0] not in _SHOWS_ONLY:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]

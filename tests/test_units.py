"""Experiments as units: the same numbers however many run at once, kept when done, forgotten when they are stale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dapedu.experiments import units
from dapedu.experiments.units import clear_scratch, parallel, run_units

CASES = [{"number": number, "calls": None} for number in range(4)]


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """A file to which each call of a unit adds a line; results go to a folder of their own."""
    monkeypatch.setattr(units, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(units, "_asked", set())
    return tmp_path / "calls"


def cases(calls: Path, **more) -> list[dict]:
    return [case | {"calls": str(calls)} | more for case in CASES]


def noted(calls: Path) -> list[int]:
    return sorted(map(int, calls.read_text(encoding="utf8").split())) if calls.exists() else []


# Processes import these by name, so that they stand here.


def trained(*, number: int, calls: str, fails: int | None = None) -> dict:
    """A sum whose last bits depend on how many threads share it."""
    with open(calls, "a", encoding="utf8") as file:
        file.write(f"{number}\n")
    if number == fails:
        raise ZeroDivisionError(f"unit {number}")
    generator = torch.Generator().manual_seed(number)
    left, right = torch.randn(2, 300, 300, generator=generator).unbind()
    return {"sum": (left @ right).sum().item(), "threads": torch.get_num_threads(), "pair": (1, 2)}


def not_a_number(*, number: int, calls: str) -> dict:
    return {"value": float("nan")}


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_the_same_however_many_run_at_once(jobs, calls):
    """Oracle: the unit called here on one thread, through JSON; the number of threads is as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with parallel(jobs):
            results = run_units(trained, cases(calls))
        assert torch.get_num_threads() == 2
        assert noted(calls) == [0, 1, 2, 3]
        torch.set_num_threads(1)
        assert results == [json.loads(json.dumps(trained(**case))) for case in cases(calls)]
    finally:
        torch.set_num_threads(threads)
    assert [result["threads"] for result in results] == [1] * 4


def test_what_is_done_is_not_done_again(calls):
    """Oracle: calls counted, with one result taken away, in another order, and for another case."""
    first = run_units(trained, cases(calls)[:2])
    with parallel(1) as spent:
        both = run_units(trained, cases(calls)[::-1])
    assert noted(calls) == [0, 1, 2, 3]
    assert both[2:] == first[::-1]
    assert len(spent) == 2
    assert 0 < sum(spent) < 60
    run_units(trained, cases(calls, fails=9)[:1])
    assert noted(calls) == [0, 0, 1, 2, 3]


def kept() -> set[int]:
    """The units whose results are there."""
    files = units.scratch().glob("*.json")
    return {json.loads(file.read_text(encoding="utf8"))["case"]["number"] for file in files}


def test_a_failure_is_the_callers_and_what_was_done_stays(calls):
    """Oracle: the unit's own exception; the units before the failing one are not computed again."""
    with pytest.raises(ZeroDivisionError, match="unit 2"):
        run_units(trained, cases(calls, fails=2))
    assert kept() == {0, 1}
    calls.unlink()
    with pytest.raises(ZeroDivisionError):
        run_units(trained, cases(calls, fails=2))
    assert noted(calls) == [2]


def test_a_failure_of_one_of_several_processes(calls):
    """Oracle: the same exception; what is kept is what was done: one unit at least, or the third would not have begun.

    What still runs goes on to its end and is kept, too.
    """
    with parallel(2), pytest.raises(ZeroDivisionError, match="unit 2"):
        run_units(trained, cases(calls, fails=2))
    assert kept()
    assert 2 not in kept()


def test_an_interrupted_run_goes_on(calls, tmp_path):
    """Oracle: killed while it computes the third of four, it finds two and computes two."""
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from dapedu.experiments import units
import test_units

units.RESULTS = Path({str(units.RESULTS)!r})
calm = test_units.trained

def trained(*, number, calls):
    if number == 2:
        os.kill(os.getpid(), 9)
    return calm(number=number, calls=calls)

units.run_units(trained, test_units.cases(Path({str(calls)!r})))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert killed.returncode == -9, killed.stderr
    assert noted(calls) == [0, 1]
    results = run_units(trained, cases(calls))
    assert noted(calls) == [0, 1, 2, 3]
    assert len(results) == 4


def test_units_of_other_code_are_no_use(calls, monkeypatch):
    """Oracle: calls counted."""
    run_units(trained, cases(calls)[:1])
    monkeypatch.setattr(units, "_code_digest", lambda: "other")
    run_units(trained, cases(calls)[:1])
    assert noted(calls) == [0, 0]


def test_which_code_counts(tmp_path, monkeypatch):
    """Oracle: a package of empty files, one changed at a time."""
    names = ["losses/classic.py", "experiments/bandit.py", "train/loop.py", "cli/training.py", "explore/controls.py"]
    names += ["claims/dpo.py", "plots.py"]
    monkeypatch.setattr(units, "_PACKAGE", tmp_path)

    def digest() -> str:
        return units._code_digest.__wrapped__()

    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = set()
    for name in names:
        before = digest()
        (tmp_path / name).write_text("1\n", encoding="utf8")
        if digest() != before:
            found.add(name)
    assert found == {"losses/classic.py", "experiments/bandit.py", "train/loop.py"}
    package = Path(units.__file__).parents[1]
    assert all((package / name).exists() for name in units._SHOWS_ONLY)


def test_a_result_that_json_does_not_hold_is_not_kept(calls):
    with pytest.raises(ValueError, match="JSON"):
        run_units(not_a_number, cases(calls)[:1])
    assert not list(units.scratch().iterdir())


def test_clearing_spares_what_another_experiment_has_left(calls, monkeypatch):
    """Oracle: the files that are there: an interrupted experiment's stay, this process's and those of old code go."""
    (units.RESULTS / ".unfinished" / "old").mkdir(parents=True)
    (units.RESULTS / ".unfinished" / "old" / "unit.json").touch()
    run_units(trained, cases(calls)[:2])
    monkeypatch.setattr(units, "_asked", set())  # as another process
    run_units(trained, cases(calls)[2:])
    (units.scratch() / "sft-0").mkdir()
    clear_scratch()
    assert sorted(entry.is_dir() for entry in units.scratch().iterdir()) == [False, False, True]
    assert [folder.name for folder in (units.RESULTS / ".unfinished").iterdir()] == [units._code_digest()]
    calls.unlink()
    run_units(trained, cases(calls))
    assert noted(calls) == [2, 3]
    clear_scratch()
    assert not list((units.RESULTS / ".unfinished").iterdir())
    clear_scratch()

"""The experiments run at a small size, are stored whole or not at all, and the command says what it does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dapedu import experiments
from dapedu.cli import main
from dapedu.experiments import bandit, gpu


def test_bandit_figures_end_near_the_closed_form():
    results = bandit.bandit_figures(taus=(1.0,), betas=(1.0,), seeds=3, steps=2_000)
    for name, entry in results.items():
        ipo = entry["IPO 1"]
        assert ipo["mean"] == pytest.approx(ipo["closed_form"], abs=0.05), name
    assert results["D1"]["DPO 1"]["mean"][0] > 0.95
    assert [entry["has_finite_dpo_optimum"] for entry in results.values()] == [False, True, True, False, False, True]


def test_closed_forms_agree_with_a_numerical_optimiser():
    results = bandit.closed_forms(problems=5, seed=1)
    kinds = ("dpo_weight", "gibbs", "reward_margin", "dpo_population", "psi_identity")
    assert set(results) == {f"{kind}_worst" for kind in kinds}
    assert max(results.values()) < 1e-5


def test_finite_data_gets_nearer_with_more_comparisons():
    results = bandit.finite_data(counts=(10, 1_000), datasets=30, seed=1)
    assert results["10"]["total_variation_mean"] > 3 * results["1000"]["total_variation_mean"]
    assert results["10"]["share_with_finite_optimum"] < 0.5 < results["1000"]["share_with_finite_optimum"]


def test_displacement_lowers_the_chosen_only_with_shared_features():
    results = bandit.displacement(steps=50)
    assert results["DPO free"]["chosen_change"] > 0 > results["DPO shared"]["chosen_change"]
    assert results["DPO shared"]["margin_change"] > 0


def test_reverse_kl_stays_bounded_where_the_forward_one_does_not():
    results = bandit.kl_at_the_edge()
    assert results["reverse"][-1] < results["bound"]
    assert results["forward"] == [*sorted(results["forward"][:-1]), None]


def test_the_benchmark_compares_equal_work():
    results = bandit.bandit_benchmark(seeds=2, steps=200, plain_runs=4)
    assert results["largest_difference_of_end_points"] < 1e-9
    assert results["runs"] == 2 * 4 * 3 * 2
    assert results["ratio_of_medians"] > 1


def test_a_result_is_stored_with_all_that_made_it(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    path = experiments.run("kl_at_the_edge")
    record = json.loads(path.read_text(encoding="utf8"))
    assert record | {"command": "dapedu reproduce kl_at_the_edge"} == experiments.load("kl_at_the_edge")
    assert record["settings"]["reference"] == [0.5, 0.3, 0.2]
    assert {"commit", "machine", "seconds", "results"} <= set(record)
    assert [file.name for file in tmp_path.iterdir()] == ["kl_at_the_edge.json"]


def test_a_failed_run_leaves_the_stored_result_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    before = experiments.run("kl_at_the_edge").read_text(encoding="utf8")
    monkeypatch.setitem(experiments.EXPERIMENTS, "kl_at_the_edge", lambda: {"reverse": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        experiments.run("kl_at_the_edge")
    assert (tmp_path / "kl_at_the_edge.json").read_text(encoding="utf8") == before


def test_an_installed_package_stores_results_where_one_is(tmp_path):
    """Oracle: the package copied to a folder that is no checkout, run from another one."""
    site, here = tmp_path / "site", tmp_path / "here"
    shutil.copytree(Path(experiments.__file__).parents[1], site / "dapedu")
    here.mkdir()
    command = [sys.executable, "-m", "dapedu", "reproduce", "kl_at_the_edge"]
    subprocess.run(command, cwd=here, env=os.environ | {"PYTHONPATH": str(site)}, check=True, capture_output=True)
    record = json.loads((here / "data" / "results" / "kl_at_the_edge.json").read_text(encoding="utf8"))
    assert record["commit"] == "unknown"


def test_a_result_is_stored_where_there_is_no_git(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert json.loads(experiments.run("kl_at_the_edge").read_text(encoding="utf8"))["commit"] == "unknown"


def test_the_command_lists_and_explains(capsys):
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [*experiments.EXPERIMENTS, "all"]
    assert main(["claims", "ipo-2"]) == 0
    assert "does not hold here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "kl_at_the_edge", "nope"], "no result 'nope'; `dapedu reproduce --list` shows them"),
        (["claims", "nope"], "no claim 'nope'"),
    ],
)
def test_the_command_refuses_before_any_work(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_says_which_evidence_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["claims", "ipo-2"])
    assert stopped.value.code == 2
    assert "`dapedu reproduce kl_at_the_edge` makes it" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setitem(experiments.EXPERIMENTS, "kl_at_the_edge", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["reproduce", "kl_at_the_edge"])


def test_python_dash_m_has_help():
    shown = subprocess.run([sys.executable, "-m", "dapedu", "--help"], capture_output=True, text=True, check=True)
    assert "reproduce" in shown.stdout
    assert "claims" in shown.stdout


def test_the_gpu_benchmark_runs_where_there_is_none():
    """Oracle: what it is to return; compiling is left to the GPU, it takes a minute."""
    found = gpu.throughput_gpu(shapes=("tiny GPT-2",), ways=("eager",), steps=1, repeats=1)
    assert found.pop("card") == ("none" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert list(found) == [
        f"tiny GPT-2, eager, {precision}, {layout}"
        for precision in ("float32", "bfloat16")
        for layout in ("pack", "collate")
    ]
    assert all(min(result["tokens a second"]) > 0 for result in found.values())

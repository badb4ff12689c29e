"""The command as a reader meets it: help, one line for what is wrong, dry runs, a session from corpus to report."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from dapedu import experiments
from dapedu.cli import main
from dapedu.data import load_demonstrations, load_preferences, load_rankings, save_records
from dapedu.experiments import units
from dapedu.models import load_model
from dapedu.train import METHODS, DivergedError

torch.set_num_threads(1)

COMMANDS = [
    "sft",
    "train",
    "reward",
    "ppo",
    "rloo",
    "rounds",
    "data",
    "sample",
    "evaluate",
    "bandit",
    "reproduce",
    "claims",
]
KINDS = ["corpus", "pairs", "rankings"]
FEW = ["--steps", "3", "--batch-size", "8", "--kl-samples", "8", "--quiet"]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """Corpus, SFT model, pairs and rankings, each made by the command; the model has learnt to end its reviews."""
    folder = tmp_path_factory.mktemp("session")
    for split, number in {"train": 400, "validation": 24}.items():
        assert (
            main(["data", "corpus", "--split", split, "--number", str(number), "--output", f"{folder}/{split}.jsonl"])
            == 0
        )
    words = ["sft", "--data", f"{folder}/train.jsonl", "--held-out", f"{folder}/validation.jsonl", "--output"]
    assert main([*words, f"{folder}/sft", "--steps", "120", "--batch-size", "32", "--quiet"]) == 0
    for kind, number in {"pairs": 60, "rankings": 16}.items():
        words = [
            "data",
            kind,
            "--model",
            f"{folder}/sft",
            "--number",
            str(number),
            "--output",
            f"{folder}/{kind}.jsonl",
        ]
        assert main(words) == 0
    pairs = list(load_preferences(folder / "pairs.jsonl"))
    splits = {"train": pairs[8:], "test": pairs[:8]}
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    both.save_to_disk(folder / "both")
    return folder


def refused(words: list[str], capsys) -> str:
    """What is said of words that make no sense: one line, status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert not out
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"dapedu {words[0]}")
    return lines[0]


# ---- a session ----


def test_what_the_session_has_made(session):
    """Oracle: the files' own readers, and the numbers asked for."""
    assert len(load_demonstrations(session / "train.jsonl")) == 400
    assert 10 < len(load_preferences(session / "pairs.jsonl")) <= 60
    rankings = load_rankings(session / "rankings.jsonl")
    assert (len(rankings), len(rankings[0]["completions"])) == (16, 4)
    assert {"run.json", "log.csv", "model"} <= {file.name for file in (session / "sft").iterdir()}
    header, *rows = (session / "sft" / "log.csv").read_text(encoding="utf8").splitlines()
    names = header.split(",")
    last = dict(zip(names, rows[-1].split(","), strict=True))
    assert last["step"] == "120"
    assert float(last["held_out_loss"]) < 3  # nats a token; 5.8 for a guess


@pytest.mark.parametrize("method", [method for method in METHODS if method != "sft"])
def test_every_method_trains_by_its_name(method, session, tmp_path, capsys):
    """Oracle: the weights moved, and the folder says by what; a model is found by the folder of its run."""
    data = "rankings" if METHODS[method].records == "rankings" else "pairs"
    words = ["train", "--method", method, "--model", f"{session}/sft", "--data", f"{session}/{data}.jsonl"]
    shutil.copy(session / f"{data}.jsonl", tmp_path / "held_out.jsonl")
    assert main([*words, "--held-out", f"{tmp_path}/held_out.jsonl", "--output", f"{tmp_path}/run", *FEW]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step 3, loss ")
    assert "held_out_loss" in out[0]
    assert "kl" in out[0]
    assert out[1].startswith(f"wrote {tmp_path}/run/model, log.csv beside it")
    asked = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf8"))
    assert (asked["method"], asked["strengths"]) == (method, dict(METHODS[method].strengths))
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (session / "sft", tmp_path / "run")
    )
    assert any((before[name] != after[name]).any() for name in before)


def test_strengths_and_settings_reach_the_training(session, tmp_path):
    """Oracle: what the run's folder says it was asked."""
    words = ["train", "--method", "click", "--model", f"{session}/sft/model", "--data", f"{session}/pairs.jsonl"]
    words += ["--output", f"{tmp_path}/run", "--delta", "3", "--contrast-weight", "0.5", *FEW]
    given = {"lr": 1e-4, "warmup": 1, "clip": 2.0, "seed": 7, "parts": 4, "log_every": 2, "evaluate_every": 3}
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main(words) == 0
    asked = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf8"))
    assert asked["strengths"] == {"delta": 3.0, "contrast_weight": 0.5}
    for name, value in {**given, "steps": 3, "batch_size": 8}.items():
        assert asked["settings"][name] == value, name


def test_sft_goes_on_with_a_model_that_is_given(session, tmp_path):
    """Oracle: a step of 1e-12 leaves the given weights as they were."""
    words = ["sft", "--data", f"{session}/train.jsonl", "--model", f"{session}/sft", "--output", f"{tmp_path}/run"]
    assert main([*words, "--lr", "1e-12", *FEW]) == 0
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (session / "sft", tmp_path / "run")
    )
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("model", "adapters", "lr"), [(False, False, 4e-3), (False, True, 4e-3), (True, False, 1e-5), (True, True, 1e-4)]
)
def test_a_model_that_knows_something_is_trained_in_smaller_steps(model, adapters, lr, session, tmp_path):
    """Oracle: what the run's folder says it was asked."""
    words = ["sft", "--data", f"{session}/train.jsonl", "--output", f"{tmp_path}/run", *FEW]
    words += ["--model", f"{session}/sft"] * model + ["--lora-rank", "2"] * adapters
    assert main(words) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf8"))["settings"]["lr"] == lr


def test_adapters_of_a_model_without_a_folder_keep_their_base(session, tmp_path, capsys):
    """Oracle: the model that was trained further, read from its own folder; a resumed run finds the same base."""
    words = ["sft", "--data", f"{session}/train.jsonl", "--lora-rank", "2", "--output", f"{tmp_path}/first", *FEW]
    assert main([*words, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"wrote {tmp_path}/first/base, the adapters' base, which had no folder yet"
    assert out[1].startswith("step 3, loss ")
    merged, _ = load_model(tmp_path / "first" / "model")  # the base with what was learnt

    words = ["train", "--method", "dpo", "--model", f"{tmp_path}/first", "--data", f"{session}/pairs.jsonl"]
    words += ["--lora-rank", "2", "--output", f"{tmp_path}/second", *FEW]
    assert main(words) == 0
    base, _ = load_model(tmp_path / "second" / "base")
    for one, other in zip(base.parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    named = json.loads((tmp_path / "second" / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str((tmp_path / "second" / "base").resolve())
    before = (tmp_path / "second" / "base" / "model.safetensors").stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "second" / "base" / "model.safetensors").stat().st_mtime_ns == before

    other = shutil.copytree(tmp_path / "second" / "base", tmp_path / "third" / "base") / "model.safetensors"
    weights = load_file(other)
    weights["transformer.ln_f.bias"] += 1
    save_file(weights, other, metadata={"format": "pt"})
    words[words.index(f"{tmp_path}/second")] = f"{tmp_path}/third"
    capsys.readouterr()
    assert "third/base holds another model than the adapters' base" in refused(words, capsys)


def test_samples_are_read_or_kept(session, tmp_path, capsys):
    """Oracle: two prompts' completions with a reward each; the sums behind them; the same completions as records."""
    words = ["sample", "--model", f"{session}/sft", "--number", "2", "--seed", "3"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert plain.count("  gold reward ") == 2
    assert plain.count(" reviews the ") == 2
    assert main([*words, "--judge"]) == 0
    assert "gold reward" not in capsys.readouterr().out.splitlines()[1]
    assert main([*words, "--output", f"{tmp_path}/samples.jsonl"]) == 0
    kept = load_demonstrations(tmp_path / "samples.jsonl")
    assert [f"{record['prompt']} {record['completion']}" in plain for record in kept] == [True, True]
    capsys.readouterr()
    prompt = kept[0]["prompt"]
    assert (
        main(["sample", "--model", f"{session}/sft", "--prompt", prompt, "--temperature", "0", "--best-of", "2"]) == 0
    )
    assert capsys.readouterr().out.count(prompt) == 1


def test_an_evaluation_is_printed_and_written(session, tmp_path, capsys):
    """Oracle: the same numbers on the screen and in the file; a model is like itself."""
    words = ["evaluate", "--model", f"{session}/sft", "--reference", f"{session}/sft", "--number", "32"]
    assert main([*words, "--temperature", "1", "0.5", "--output", f"{tmp_path}/new/report.json"]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf8"))
    assert list(report) == ["1", "0.5"]
    assert "32 completions of test prompts, temperature 0.5" in out
    mean, low, high = report["1"]["gold"]
    assert f"  {'gold':22} {mean:8.3f}  [{low:.3f}, {high:.3f}]" in out
    assert report["1"]["kl"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert "kl" not in report["0.5"]  # of the policy at temperature 1, which these are not samples of
    assert isinstance(report["1"]["perplexity"], float)


# ---- a dry run ----


@pytest.mark.parametrize("command", ["sft", "train"])
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(command, session, tmp_path, capsys):
    """Oracle: the lines, and an empty folder."""
    words = {
        "sft": ["sft", "--data", f"{session}/train.jsonl"],
        "train": ["train", "--method", "dpo", "--data", f"{session}/pairs.jsonl", "--model", f"{session}/sft"],
    }[command]
    before = sorted(session.rglob("*"))
    assert main([*words, "--output", f"{tmp_path}/run", "--dry-run", "--steps", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["examples", "steps", "tokens", "parameters", "memory", "time"]
    assert "50, " in lines[1]
    assert "MiB" in lines[4]
    if command == "train":
        said = refused([*words, "--output", f"{tmp_path}/run", "--dry-run", "--beta", "-1"], capsys)
        assert "dpo_loss: beta is -1.0" in said
    assert not list(tmp_path.iterdir())
    assert sorted(session.rglob("*")) == before


# ---- what is wrong is said in one line ----


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS), *(["data", kind] for kind in KINDS)])
def test_every_command_explains_itself(command, capsys):
    """Oracle: status 0, every option with a word about it."""
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(" ".join(["usage: dapedu", *command]))
    if not command:
        assert all(f"\n    {name}" in shown for name in COMMANDS)
        assert "exit status: 0 done" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "--data", "{}/none.jsonl"], "none.jsonl: there is no such file"),
        (["dpo", "--data", "{}/train.jsonl"], "train.jsonl, line 1: no `chosen`; there are 'prompt', 'completion'"),
        (["dpo", "--data", "{}/pairs.jsonl", "--held-out", "{}/train.jsonl"], "train.jsonl, line 1: no `chosen`"),
        (["sft", "--data", "{}/train.jsonl", "--size", "huge"], "no size 'huge'; there are tiny, small"),
        (["sft", "--data", "{}/train.jsonl", "--model", "{}/none"], "there is no folder"),
        (["sft", "--data", "{}/train.jsonl", "--steps", "0"], "Settings: steps is 0, expected at least 1"),
        (["dpo", "--data", "{}/pairs.jsonl", "--model", "{}"], "has no config.json, so it is not a model's folder"),
        (["dpo", "--data", "{}/pairs.jsonl", "--tau", "1"], "--tau is no strength of dpo, which has --beta"),
        (["slic-hf", "--data", "{}/pairs.jsonl", "--beta", "1"], "slic-hf, which has --delta and --sft-weight"),
        (["dpo", "--data", "{}/pairs.jsonl", "--beta", "-1"], "dpo_loss: beta is -1.0"),
        (["dpo", "--data", "{}/pairs.jsonl", "--lr", "nan"], "Settings: lr is nan, expected a positive number"),
        (["rrhf", "--data", "{}/pairs.jsonl"], "pairs.jsonl, line 1: no `completions`; there are"),
        (["dpo", "--data", "{}/pairs.jsonl", "--held-out", "{}/pairs.jsonl"], "evaluated on what it is trained on"),
        (["sft", "--data", "{}/train.jsonl", "--held-out", "{}/sft/../train.jsonl"], "evaluated on what it is trained"),
        (["dpo", "--data", "{}/both", "--held-out", "{}/both"], "both, split train: a model would be evaluated on"),
        (["dpo", "--data", "{}/pairs.jsonl", "--held-out", "{}/both", "--held-out-split", "x"], "no split 'x'"),
        (["dpo", "--data", "{}/pairs.jsonl", "--lora-alpha", "2"], "about adapters, which only --lora-rank makes"),
        (["dpo", "--data", "{}/pairs.jsonl", "--lora-rank", "2", "--lora-alpha", "0"], "alpha is 0.0, expected"),
        (
            ["dpo", "--data", "{}/long.jsonl"],
            "long.jsonl, line 2: 203 tokens, prompt and end included, are more than the 96",
        ),
    ],
)
def test_bad_words_and_files_are_refused_before_anything_is_written(words, message, session, tmp_path, capsys):
    """Oracle: one line with the message, status 2, and no folder."""
    if words[0] != "sft":
        model = [] if "--model" in words else ["--model", "{}/sft"]
        words = ["train", "--method", *words, *model]
    long = {"prompt": "a reviewer", "chosen": "good " * 200, "rejected": "bad"}
    save_records(session / "long.jsonl", [long | {"chosen": "good"}, long])
    said = refused([*(word.format(session) for word in words), "--output", f"{tmp_path}/run", "--quiet"], capsys)
    assert message in said
    assert not list(tmp_path.iterdir())


def test_splits_of_one_dataset_are_trained_on_and_held_out(session, tmp_path):
    """Oracle: what is logged: held-out records were evaluated."""
    words = ["train", "--method", "dpo", "--model", f"{session}/sft", "--output", f"{tmp_path}/run", *FEW]
    words += ["--data", f"{session}/both", "--held-out", f"{session}/both", "--held-out-split", "test"]
    assert main(words) == 0
    assert (tmp_path / "run" / "log.csv").read_text(encoding="utf8").splitlines()[-1].split(",")[9]  # held_out_loss


@pytest.mark.parametrize("output", ["{}/sft", "{}/sft/.", "{}"])
def test_the_model_that_is_trained_is_not_written_over(output, session, tmp_path, capsys):
    """Oracle: one line, the files as they were; a model's own folder, and one whose `model` it is."""
    here = shutil.copytree(session / "sft" / "model", tmp_path / "model")
    shutil.copytree(session / "sft" / "model", tmp_path / "sft")
    before = sorted(tmp_path.rglob("*"))
    model = here if output == "{}" else tmp_path / "sft"
    words = ["train", "--method", "dpo", "--model", str(model), "--data", f"{session}/pairs.jsonl", "--quiet"]
    said = refused([*words, "--output", output.format(tmp_path)], capsys)
    assert f"--output is the folder of --model {model}, which would change" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "pairs", "--model", "{}/none", "--output", "{}/x"], "there is no folder"),
        (["data", "pairs", "--model", "{}/sft", "--flip", "0.7", "--number", "2", "--output", "{}/x"], "flip is 0.7"),
        (["data", "rankings", "--model", "{}/sft", "--candidates", "1", "--output", "{}/x"], "candidates is 1"),
        (["sample", "--model", "{}/none"], "there is no folder"),
        (["sample", "--model", "{}/sft", "--temperature", "-1"], "temperature is -1.0, expected at least 0"),
        (["sample", "--model", "{}/sft", "--best-of", "0"], "n is 0, expected at least 1"),
        (["sample", "--model", "{}/sft", "--prompt", "once upon a time"], "once upon a time"),
        (["evaluate", "--model", "{}/sft", "--reference", "{}/none"], "there is no folder"),
        (["evaluate", "--model", "{}/sft", "--number", "8", "--temperature", "-1"], "temperature is -1.0"),
        (["bandit", "--dataset", "D9"], "no dataset 'D9'; there are D1, D2"),
        (["bandit", "--steps", "0"], "train_bandit: steps is 0"),
        (["bandit", "--strengths", "-1", "--steps", "2"], "-1"),
        (["reproduce"], "name results, or say --all"),
        (["reproduce", "--all", "closed_forms"], "name results, or say --all"),
        (["reproduce", "nope", "--dry-run"], "no result 'nope'; `dapedu reproduce --list` shows them"),
        (["reproduce", "closed_forms", "--jobs", "0"], "--jobs is 0, expected at least 1"),
        (["claims", "nope"], "no claim 'nope'"),
    ],
)
def test_the_other_commands_refuse_as_shortly(words, message, session, capsys):
    assert message in refused([word.format(session) for word in words], capsys)
    assert not (session / "x").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tarin"],
        ["train", "--method", "ppo"],
        ["train", "--method", "reward"],
        ["reward", "--model", "x", "--data", "x", "--output", "y", "--lora-rank", "2"],
        ["data", "corpus", "--number", "0", "--output", "x"],
        ["data", "corpus", "--split", "all", "--output", "x"],
        ["sft", "--data", "x", "--output", "y", "--steps", "many"],
    ],
)
def test_words_that_are_none_of_the_commands(words, capsys, tmp_path, monkeypatch):
    """Oracle: argparse's usage and its line, status 2."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("dapedu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["sft", "--data", "x"],
        ["train", "--method", "dpo", "--model", "x", "--data", "x"],
        ["reward", "--model", "x", "--data", "x"],
        ["data", "corpus"],
        ["data", "pairs", "--model", "x"],
        ["data", "rankings", "--model", "x"],
        ["sample", "--model", "x"],
        ["evaluate", "--model", "x"],
    ],
)
def test_seeds_and_names_that_are_none(command, capsys):
    """Oracle: argparse's line with our words, before the files that are missing too."""
    seeds = ["--seed", "--model-seed"] if command[0] == "sft" else ["--seed"]
    for option, value, message in [
        *(
            (option, value, f"{value}, expected a whole number")
            for option in seeds
            for value in ("-1", str(2**63), "1.5")
        ),
        ("--output", "", "an empty name, expected one"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main([*command, *(["--output", "x"] if option != "--output" else []), option, value])
        assert stopped.value.code == 2
        assert f"argument {option}: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_diverges_ends_with_1(session, tmp_path, capsys, monkeypatch):
    """Oracle: the status, and the advice as one line; a learning rate of 1e30 needs no help to diverge."""
    words = ["train", "--method", "ipo", "--model", f"{session}/sft", "--data", f"{session}/pairs.jsonl", "--quiet"]
    words += ["--output", f"{tmp_path}/run", "--lr", "1e30", "--warmup", "0", "--clip", "1e30", "--batch-size", "8"]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dapedu: step ")
    assert "Try a smaller learning rate (now 1e+30)" in line
    assert issubclass(DivergedError, ArithmeticError)


def test_what_the_disk_refuses_ends_with_1(session, tmp_path, capsys):
    """Oracle: a file stands where a folder is needed."""
    (tmp_path / "file").touch()
    assert main(["data", "corpus", "--number", "2", "--output", f"{tmp_path}/file/corpus.jsonl"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dapedu: [Errno")
    words = ["sft", "--data", f"{session}/train.jsonl", "--output", f"{tmp_path}/file", "--quiet"]
    assert "file cannot be written (File exists); choose another folder" in refused(words, capsys)


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    """Oracle: the status that shells give to what Ctrl-C has ended (a run's own is in test_interruptions)."""

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dapedu.reviews.corpus", interrupted)
    assert main(["data", "corpus", "--output", "x"]) == 130
    assert capsys.readouterr().err == "dapedu: interrupted\n"


# ---- results, the bandit, and a pipe ----


def test_results_are_listed_and_a_dry_run_runs_nothing(capsys, monkeypatch, tmp_path):
    """Oracle: the names; experiments that would fail if they were run."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setattr(units, "RESULTS", tmp_path)
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [*experiments.EXPERIMENTS, "all"]
    assert all("not run" in line for line in listed)
    for name in experiments.EXPERIMENTS:
        monkeypatch.setitem(experiments.EXPERIMENTS, name, lambda: 1 / 0)
    assert main(["reproduce", "--all", "--dry-run"]) == 0
    n = len(experiments.EXPERIMENTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"[1/{n}] bandit_figures, not run before"
    assert len(lines) == n + 1
    assert lines[-1] == "together not run"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "expected"), [([40, 59.4], "99 s"), ([40, 60], "2 min"), ([10_000, 800], "3.0 h"), ([], "not run")]
)
def test_how_long_all_results_took(capsys, monkeypatch, tmp_path, seconds, expected):
    """Oracle: their sum by hand; what was never run adds nothing."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    for name, value in zip(("closed_forms", "noise_map"), seconds, strict=False):
        (tmp_path / f"{name}.json").write_text(json.dumps({"seconds": value}), encoding="utf8")
    main(["reproduce", "--list"])
    assert f"{expected}  {len(experiments.EXPERIMENTS)} results" in capsys.readouterr().out.splitlines()[-1]


def test_a_result_is_reproduced_and_compared(capsys, monkeypatch, tmp_path):
    """Oracle: an experiment of one number, the same twice, then another; its settings are stored."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setattr(units, "RESULTS", tmp_path)
    number = iter([1, 1, 2])
    monkeypatch.setitem(experiments.EXPERIMENTS, "closed_forms", lambda *, seed=3: {"number": next(number)})
    for end in ("closed_forms.json", ", as before", ", not as before: see git diff"):
        assert main(["reproduce", "closed_forms", "--jobs", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(end)
    assert json.loads((tmp_path / "closed_forms.json").read_text(encoding="utf8"))["settings"] == {"seed": 3}


def test_the_bandit_prints_the_policy_beside_the_optimum(capsys):
    """Oracle: π of a Condorcet winner at τ = 1, D1, from the closed form: within a hundredth after 3,000 steps."""
    assert main(["bandit", "--strengths", "1", "--seeds", "3", "--steps", "3000"]) == 0
    first, reached, optimum, last = capsys.readouterr().out.splitlines()
    assert first.startswith("D1: a ≻ b")
    assert last == "after 3,000 steps, mean of 3 seeds ± 95 % interval"
    values = [[float(part.split("= ")[1].split()[0]) for part in line.split("π(")[1:]] for line in (reached, optimum)]
    assert values[0] == pytest.approx(values[1], abs=0.02)
    assert sum(values[1]) == pytest.approx(1, abs=0.002)
    assert main(["bandit", "--method", "dpo", "--strengths", "1", "2", "--seeds", "2", "--steps", "10"]) == 0
    assert capsys.readouterr().out.count("β = ") == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("words", ["reproduce --list", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_closes_early_is_no_failure(words, unbuffered):
    """Oracle: bash's own record of the status; nothing is said of the pipe, whose reader is gone before it is written.

    Without a buffer the first line finds out, with one what Python flushes last.
    """
    program = f"{sys.executable} -m dapedu {words} | true; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout == "0\n"
    assert ran.stderr == ""

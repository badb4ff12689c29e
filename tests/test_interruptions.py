"""Runs that are killed, stopped or damaged, and resumed: they end as if nothing had happened, to the last bit.

DAPEDU_KILLS=10 pytest tests/test_interruptions.py kills ten times instead of three.
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dapedu.cli import main
from dapedu.data import save_records
from dapedu.models import load_model, save_model
from dapedu.train import RunError, Settings, train_preference
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

KILLS = int(os.environ.get("DAPEDU_KILLS", "3"))
STEPS, INTERVAL = 120, 10
# Batches in parts, several epochs (60 pairs, 16 a step), evaluations that draw random numbers.
OPTIONS = f"--method dpo --beta 0.5 --steps {STEPS} --batch-size 16 --parts 3 --lr 1e-3 --log-every 1"
OPTIONS += f" --checkpoint-every {INTERVAL} --evaluate-every 25 --kl-samples 16 --quiet"

# What the command does until a file of this name is about to be safe, renamed or the first of three; then it dies.
DIES_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from dapedu.cli import main

stage, name = sys.argv.pop(1), sys.argv.pop(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def fsync(file):
    if stage == "half written" and Path(f"/proc/self/fd/{file}").readlink().name == f"{name}.partial":
        os.truncate(file, os.fstat(file).st_size // 2)
        die()

def replace(source, target, _replace=os.replace):
    if stage == "not renamed" and Path(target).name == name:
        die()
    _replace(source, target)
    if stage == "old ones not dropped" and Path(target).name == name:
        die()

os.fsync, os.replace = fsync, replace
sys.exit(main(sys.argv[1:]))
"""
STAGES = ("half written", "not renamed", "old ones not dropped")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder with a model, pairs to train on and held-out ones."""
    folder = tmp_path_factory.mktemp("start")
    save_model(opinionated(vocab_size=9), word_tokenizer("a b c d e f"), folder / "model", card="A model.\n")
    draw = random.Random(0)
    text = lambda longest: " ".join(draw.choices("abcdef", k=draw.randint(1, longest)))  # noqa: E731
    pairs = [{"prompt": text(4), "chosen": text(8), "rejected": text(8)} for _ in range(70)]
    save_records(folder / "pairs.jsonl", pairs[:60])
    save_records(folder / "held_out.jsonl", pairs[60:])
    return folder


def words_of(start: Path, output: Path, *more: str) -> list[str]:
    files = ["--model", start / "model", "--data", start / "pairs.jsonl", "--held-out", start / "held_out.jsonl"]
    return ["train", *OPTIONS.split(), *map(str, files), "--output", str(output), *more]


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(words_of(start, output)) == 0
    return output


def launch(words: list[str], *, before: tuple[str, ...] = ("-m", "dapedu")) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *before, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_logged(output: Path) -> list[int]:
    """Of whole rows."""
    file = output / "log.csv"
    rows = file.read_text(encoding="utf8").split("\n")[1:-1] if file.exists() else []
    return [int(row.split(",")[0]) for row in rows]


def wait_for(process: subprocess.Popen, output: Path, step: int) -> None:
    while max(steps_logged(output), default=0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def last_checkpoint(output: Path) -> int:
    return max((int(file.stem[-8:]) for file in output.glob("checkpoint-*.safetensors")), default=0)


def table(output: Path) -> list[dict[str, str]]:
    """Without the speed, which no two runs share."""
    with (output / "log.csv").open(encoding="utf8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "tokens_s"} for row in csv.DictReader(file)]


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def assert_as_if_never_interrupted(output: Path, uninterrupted: Path) -> None:
    """Oracle: the run that was left alone: weights bit by bit, every row of the log once and with the same digits."""
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (output, uninterrupted)]
    assert weights[0] == weights[1]
    assert [int(row["step"]) for row in table(output)] == list(range(1, STEPS + 1))
    assert table(output) == table(uninterrupted)
    assert last_checkpoint(output) == STEPS
    assert len(list(output.glob("checkpoint-*"))) == 2


def test_killed_again_and_again(start, uninterrupted, tmp_path):
    """Oracle: after each kill a copy of what is left is resumed to the end; the run goes on to the next kill."""
    draw, output = random.Random(KILLS), tmp_path / "run"
    lost = []
    for number, step in enumerate(sorted(draw.sample(range(2, STEPS - INTERVAL), KILLS))):
        words = words_of(start, output, *["--resume"] * (number > 0))
        if number % 3 == 1:
            stage = STAGES[number // 3 % 3]
            at = (step // INTERVAL + 1) * INTERVAL
            process = launch(words, before=("-c", DIES_WHILE_SAVING, stage, f"checkpoint-{at:08}.safetensors"))
            how = f"while checkpoint {at} was {stage}"
        else:
            process = launch(words)
            wait_for(process, output, step)
            time.sleep(0.03 * draw.random())
            process.kill()
            how = "anywhere"
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached, kept = max(steps_logged(output)), last_checkpoint(output)
        lost.append(reached - kept)
        print(f"kill {number + 1}, {how}: step {reached} was logged, checkpoint {kept} is there")
        assert reached >= step
        copy = shutil.copytree(output, tmp_path / f"copy-{number}")
        assert main(words_of(start, copy, "--resume")) == 0
        assert_as_if_never_interrupted(copy, uninterrupted)
    assert max(lost) <= INTERVAL
    assert max(lost) > 0


def test_stopped_by_hand_and_refused_until_resumed(start, uninterrupted, tmp_path, capsys):
    """Oracle: status 130, a checkpoint of the very step; what does not fit is refused, and no byte changes."""
    output = tmp_path / "run"
    process = launch(words_of(start, output))
    wait_for(process, output, 33)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    step = last_checkpoint(output)
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        f"dapedu: stopped after step {step} of {STEPS}; saved in {output}; --resume goes on"
    )
    assert "Traceback" not in said
    assert 33 <= step < STEPS
    assert steps_logged(output) == list(range(1, step + 1))
    assert not (output / "model").exists()

    save_model(opinionated(vocab_size=9, seed=1), word_tokenizer("a b c d e f"), tmp_path / "other", card="Another.\n")
    save_records(tmp_path / "other.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 60)
    before = content(output)
    for more, message in {
        (): "already holds a run: resume it (--resume), or choose another folder",
        ("--resume", "--lr", "0.01"): "holds a run that was asked something else (lr was 0.001, now 0.01)",
        ("--resume", "--beta", "0.6"): "(beta was 0.5, now 0.6)",
        ("--resume", "--method", "spin"): "(method was dpo, now spin)",
        ("--resume", "--model", str(tmp_path / "other")): "(start was",
        ("--resume", "--data", str(tmp_path / "other.jsonl")): "(data was",
        ("--resume", "--held-out", str(tmp_path / "other.jsonl")): "(held_out was",
        ("--resume", "--parts", "1"): "(parts was 3, now 1)",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main(words_of(start, output, *more))
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
        assert content(output) == before

    assert main(words_of(start, output, "--resume")) == 0
    assert_as_if_never_interrupted(output, uninterrupted)
    finished = content(output / "model")
    assert main(words_of(start, output, "--resume")) == 0  # nothing is left to do
    assert_as_if_never_interrupted(output, uninterrupted)
    assert content(output / "model") == finished


# ---- the same inside one process, where the moment can be chosen ----


def go(start: Path, output: Path | None, *, at: int = 0, send=(), **options):
    """Eight steps, a checkpoint every third; at a step, signals are sent to this process."""
    from dapedu.data import load_preferences

    def metric(model) -> float:
        sent.append(1)
        for number in send if len(sent) == at else ():
            os.kill(os.getpid(), number)
        return float(len(sent))

    sent: list[int] = []
    model, tokenizer = load_model(start / "model")
    settings = Settings(steps=8, batch_size=8, lr=1e-3, checkpoint_every=3, log_every=1, evaluate_every=1)
    records = load_preferences(start / "pairs.jsonl")
    log = train_preference(
        model,
        tokenizer,
        records,
        method="dpo",
        settings=settings,
        metrics={"sent": metric},
        output=output,
        progress=False,
        **options,
    )
    return model, log


def assert_same(one, other) -> None:
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish(number, start, tmp_path):
    """Oracle: step 5 of 8, although the next checkpoint was due at 6; the caller's handlers are back."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 8; saved in"):
        go(start, tmp_path / "run", at=4, send=[number])  # it is seen when the next step has been taken
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert last_checkpoint(tmp_path / "run") == 5
    with pytest.raises(KeyboardInterrupt, match="nothing is saved: the run had no folder"):
        go(start, None, at=4, send=[number])


def test_a_second_signal_stops_at_once(start, tmp_path):
    """Oracle: the last checkpoint is that of step 3; the resumed run ends like one that was left alone."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        go(start, tmp_path / "run", at=5, send=[signal.SIGINT, signal.SIGINT])
    assert not str(stopped.value)
    assert last_checkpoint(tmp_path / "run") == 3
    resumed, log = go(start, tmp_path / "run", resume=True)
    alone, whole = go(start, None)
    assert_same(resumed, alone)
    assert [row["step"] for row in log] == list(range(1, 9))
    for one, two in zip(log, whole, strict=True):
        # The first three are read from the table; `sent` counts the calls of its own run.
        assert one | {"tokens_s": 0, "sent": 0} == two | {"tokens_s": 0, "sent": 0}


def test_training_in_a_thread_takes_no_signals(start):
    """Oracle: Python lets handlers be set in the main thread only; a notebook's server may use another."""
    ended = []
    thread = threading.Thread(target=lambda: ended.append(go(start, None)))
    thread.start()
    thread.join()
    assert len(ended[0][1]) == 8


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 5000), lambda file: os.truncate(file, 0)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_there(damage, start, tmp_path):
    """Oracle: the message's own advice, followed."""
    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        go(start, output, at=6, send=[signal.SIGINT])
    last = output / "checkpoint-00000007.safetensors"
    damage(last)
    before = content(output)
    with pytest.raises(RunError) as error:
        go(start, output, resume=True)
    assert str(error.value).startswith(f"{last} cannot be read")
    assert "delete it, and --resume goes on from the checkpoint before" in str(error.value)
    assert content(output) == before
    last.unlink()
    assert last_checkpoint(output) == 6
    resumed, _ = go(start, output, resume=True)
    assert_same(resumed, go(start, None)[0])
    assert steps_logged(output) == list(range(1, 9))


def test_files_of_something_else_stay(start, tmp_path):
    """Oracle: the message names them, and no byte changes."""
    for name, content_ in {
        "log.csv": b"run,score\n1,0.93\n",
        "checkpoint-00000001-mine.safetensors": b"precious",
        "checkpoint-00000003.safetensors": b"of a run without run.json",
        "model/config.json": b"{}",
    }.items():
        output = tmp_path / name.replace("/", "-")
        (output / name).parent.mkdir(parents=True)
        (output / name).write_bytes(content_)
        before = content(output)
        for resume in (False, True):
            with pytest.raises(RunError) as error:
                go(start, output, resume=resume)
            named = name.split("/")[0]
            assert str(error.value) == f"{output} holds files of something else ({named}): choose another folder"
            assert content(output) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"lr": 1}'])
def test_a_damaged_run_json_is_named(damage, start, tmp_path):
    """Oracle: the file's name in the message, and no byte changes."""
    output = tmp_path / "run"
    go(start, output)
    (output / "run.json").write_bytes(damage)
    before = content(output)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"run\.json .*: choose another folder"):
            go(start, output, resume=resume)
    assert content(output) == before


def test_only_its_own_checkpoints_are_dropped_and_read(start, tmp_path):
    """Oracle: files of similar names as they were, and a run that was left alone."""
    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        go(start, output, at=4, send=[signal.SIGINT])
    others = [output / f"checkpoint-{name}.safetensors" for name in ("best", "00000001-mine", "1", "000000009")]
    for file in others:
        file.write_bytes(b"mine")
    resumed, _ = go(start, output, resume=True)
    assert_same(resumed, go(start, None)[0])
    assert [file.read_bytes() for file in others] == [b"mine"] * 4
    assert len(list(output.glob("checkpoint-0000000[0-9].safetensors"))) == 2


@pytest.mark.parametrize("left", ["run.json alone", "a header"])
def test_a_run_that_did_nothing_may_be_asked_something_else(left, start, tmp_path):
    """Oracle: a run that was left alone: its header, its rows, its run.json; a resumed one must be the same."""
    go(start, tmp_path / "alone")
    output = tmp_path / "run"
    output.mkdir()
    asked = (tmp_path / "alone" / "run.json").read_text(encoding="utf8")
    (output / "run.json").write_text(asked.replace('"seed": 0', '"seed": 7'), encoding="utf8")
    if left == "a header":
        (output / "log.csv").write_text("step,loss,other\n", encoding="utf8")
    with pytest.raises(RunError, match=r"asked something else \(seed was 7, now 0\)"):
        go(start, output, resume=True)
    go(start, output)
    assert (output / "run.json").read_text(encoding="utf8") == asked
    assert table(output) == table(tmp_path / "alone")
    with pytest.raises(RunError, match="already holds a run"):
        go(start, output)


@pytest.mark.parametrize("left", ["an empty table", "a header", "no table"])
def test_killed_before_the_first_row(left, start, tmp_path):
    """Oracle: a run that was left alone: its header, its rows."""
    go(start, tmp_path / "alone")
    go(start, tmp_path / "run")
    for file in (tmp_path / "run").glob("checkpoint-*"):
        file.unlink()
    log = tmp_path / "run" / "log.csv"
    header = log.read_text(encoding="utf8").split("\n")[0] + "\n"
    log.unlink()
    if left != "no table":
        log.write_text(header if left == "a header" else "", encoding="utf8")
    go(start, tmp_path / "run", resume=True)
    assert table(tmp_path / "run") == table(tmp_path / "alone")

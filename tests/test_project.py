"""What the files of the project promise each other: environments, notebooks, docstrings and equations."""

import ast
import fnmatch
import functools
import importlib.metadata
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dapedu import logps, losses

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@functools.cache
def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code" and source(cell).strip()]


def markdown(path: Path) -> str:
    return "\n\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file that git would track, without asking git: a downloaded archive has none."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name != ".git" and not any(fnmatch.fnmatch(name, i) for i in ignored)]
        for file in files:
            path = Path(folder, file)
            try:
                yield path.relative_to(ROOT), path.read_text(encoding="utf8")
            except UnicodeDecodeError:
                continue


# Environments


def test_environment_yml_installs_what_pyproject_declares():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(d for d in dependencies if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    assert "-c constraints.txt" in pip
    editable = next(re.fullmatch(r"-e \.\[(.+)\]", line) for line in pip if line.startswith("-e"))
    assert set(editable[1].split(",")) == set(PROJECT["optional-dependencies"])


def test_every_declared_package_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    declared = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} excludes the pinned {pin}"


def test_every_pin_runs_on_the_oldest_python_promised():
    oldest = min(specifier.version for specifier in SpecifierSet(PROJECT["requires-python"]))
    needs = {d.name: SpecifierSet(d.metadata.get("Requires-Python") or "") for d in importlib.metadata.distributions()}
    assert [name for name, python in needs.items() if not python.contains(f"{oldest}.0")] == []


def test_package_lock_names_no_registry():
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()


def test_repository_address_stands_in_one_file():
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    name = re.sub(r"^https?://", "", address)
    assert [str(path) for path, text in texts() if name in text] == ["_config.yml"]


def test_no_file_names_this_machine():
    places = [f"{place}/" for place in (ROOT, Path.home(), Path(sys.prefix)) if place != place.parent]  # not "/"
    assert [str(path) for path, text in texts() if any(place in text for place in places)] == []


# Notebooks


def test_the_book_has_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_notebook_ran_once_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))  # nbval passes a cell that never ran
    errors = [o for cell in code_cells(path) for o in cell["outputs"] if o["output_type"] == "error"]
    assert errors == []


@each_notebook
def test_figure_has_alt_text_caption_and_name(path):
    for cell in code_cells(path):
        if not any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            continue
        mystnb = cell["metadata"].get("mystnb", {})
        for group, key in [("image", "alt"), ("figure", "caption"), ("figure", "name")]:
            assert mystnb.get(group, {}).get(key), f"no mystnb.{group}.{key} in the cell\n{source(cell)}"


# Code and equations


def docstrings() -> Iterator[tuple[str, str]]:
    """(name, docstring) of every function and class of the package."""
    for path in (ROOT / "dapedu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name, ast.get_docstring(node) or ""


def book_labels() -> list[tuple[str, str]]:
    return [
        (name, label)
        for name, docstring in docstrings()
        for listed in re.findall(r"\bBook: (eq-[\w-]+(?:, eq-[\w-]+)*)", docstring)
        for label in listed.split(", ")
    ]


def test_losses_name_their_equations():
    assert {("dpo_loss", "eq-dpo-loss"), ("ipo_loss", "eq-ipo-loss")} <= set(book_labels())


@pytest.mark.parametrize(("function", "label"), book_labels())
def test_equation_and_function_name_each_other(function, label):
    defines = re.compile(rf"\$\$\s*\({label}\)|^:label: {label}$", re.MULTILINE)
    homes = [path for path in NOTEBOOKS if defines.search(markdown(path))]
    assert len(homes) == 1, f"{label} is defined in {[path.name for path in homes]}, expected one notebook"
    link = re.compile(rf"\{{py:\w+\}}`[^`]*\b{function}\b[^`]*`")
    assert link.search(markdown(homes[0])), f"{homes[0].name} defines {label}, but does not link to {function}"


def public_functions() -> list:
    return [
        function
        for module in (losses, logps)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation == "Tensor"
    ]


@pytest.mark.parametrize("function", public_functions(), ids=lambda function: function.__name__)
def test_formula_says_which_paper_it_is_from(function):
    assert re.search(r"^Source: arXiv:\d{4}\.\d{4,5}\b", inspect.getdoc(function), re.MULTILINE)


def test_importing_the_package_alone_is_light():
    program = "import sys, dapedu; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

"""pytest plugin for an nbval run: prints each notebook's seconds and fails the run over the book's budget.

Under xdist the workers execute the cells, but every report travels to the one process that prints: so the
seconds are summed from the reports. They include the kernel's start.
"""

from collections import Counter

NOTEBOOK_BUDGET = 90  # s: a notebook may take about a minute, and a busy machine half as much again
TOTAL_BUDGET = 15 * 60  # s

seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report) -> None:
    path = report.nodeid.partition("::")[0]
    if path.endswith(".ipynb"):
        seconds[path] += report.duration


def over_budget() -> list[str]:
    over = [f"{path} takes longer than {NOTEBOOK_BUDGET} s" for path in seconds if seconds[path] > NOTEBOOK_BUDGET]
    if seconds.total() > TOTAL_BUDGET:
        over.append(f"the notebooks together take longer than {TOTAL_BUDGET} s")
    return over


def pytest_sessionfinish(session) -> None:
    if over_budget():
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.section("seconds per notebook")
    for path, spent in seconds.most_common():
        terminalreporter.line(f"{spent:7.1f}  {path}")
    terminalreporter.line(f"{seconds.total():7.1f}  in all, of {TOTAL_BUDGET}")
    for complaint in over_budget():
        terminalreporter.line(f"OVER BUDGET: {complaint}", red=True)

"""The pytest plugin: the fixture ``parity``, run folders per assertion, and a summary. PYTEST_DONT_REWRITE

It is loaded in every pytest that runs where the package is installed, so nothing but the standard library
and pytest is imported before a test asserts parity. ``-p no:parity`` turns it off; `assert_parity` works
without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.result import Run

# As in `parity.components.base.DTYPES`, which is not imported before it is needed.
DTYPES = ("float32", "bfloat16", "float16")
LONGEST_NAME = 100
LISTED = 20


class Watch:
    """Of one test: gives its assertions their folders, and keeps what came of them.

    Args:
        nodeid: of the test.
        root: of all run folders; None where none are kept.
    """

    def __init__(self, nodeid: str, root: Path | None) -> None:
        self.nodeid, self.root = nodeid, root
        self.records: list[dict[str, str]] = []

    def folder(self) -> Path | None:
        """See `parity.testing.Observer`. Workers that share the root never get the same one."""
        if self.root is None:
            return None
        self.root.mkdir(parents=True, exist_ok=True)
        name = folder_name(self.nodeid)
        number = 1
        while True:
            path = self.root / (name if number == 1 else f"{name}.{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return path

    def told(self, run: Run, page: Path | None) -> None:
        """See `parity.testing.Observer`."""
        from parity.reporters.assertion import headline

        line = "parity" if run["verdict"] == "parity" else headline(run)
        self.records.append({"verdict": run["verdict"], "line": line, "page": str(page or "")})

    def take(self) -> list[dict[str, str]]:
        """What came since the last call."""
        taken, self.records = self.records, []
        return taken


def folder_name(nodeid: str) -> str:
    """A file name for a test: letters, digits, ``-``, ``_``, ``.``; no other test has the same.

    Where something of the node id is lost, a few digits of its hash stand for it.
    """
    plain = nodeid.replace("::", "-").replace("/", "-")
    name = re.sub(r"[^\w.-]+", "-", plain, flags=re.ASCII).strip("-.")
    # Folders that differ in case only are the same on some disks.
    if not name or name != plain or name != name.lower() or len(name) > LONGEST_NAME or "-" in nodeid:
        digits = hashlib.sha256(nodeid.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 9].rstrip('-.') or 'test'}-{digits}"
    return name


_WATCH = pytest.StashKey[Watch]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("parity", "numerical parity")
    group.addoption(
        "--parity-report",
        metavar="DIR",
        help="write a run folder (parity.json, report.html) per assert_parity below DIR",
    )
    group.addoption(
        "--parity-dtype", choices=DTYPES, help="dtype of the parity fixture's assertions that name none themselves"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The folder as the user's working directory has it, before workers with another one start."""
    folder = config.getoption("parity_report")
    if folder:
        path = config.invocation_params.dir / Path(folder).expanduser()
        if path.exists() and not path.is_dir():
            raise pytest.UsageError(f"--parity-report {folder}: is a file; expected a folder, or a name that is free")
        config.option.parity_report = str(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test's assertions, those of its fixtures too."""
    from parity.testing import observing

    root = item.config.getoption("parity_report")
    item.stash[_WATCH] = Watch(item.nodeid, Path(root) if root else None)
    with observing(item.stash[_WATCH]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Put what came of the assertions into the report, which workers send to where the summary is made."""
    report = yield
    if _WATCH in item.stash and (records := item.stash[_WATCH].take()):
        report.parity = records
    return report


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`parity.testing.assert_parity`, in the dtype of ``--parity-dtype`` where the call names none."""
    from parity.testing import assert_parity

    chosen = request.config.getoption("parity_dtype")

    def asserted(*sides: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if chosen is not None and not _is_golden(sides):
            options.setdefault("dtype", chosen)
        return assert_parity(*sides, **options)

    return asserted


def _is_golden(sides: tuple[Any, ...]) -> bool:
    """A golden trace has a dtype of its own."""
    from parity.testing import is_golden

    return len(sides) > 1 and is_golden(sides[1])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Which tests are not at parity, where each starts, and where the pages are."""
    told = [
        (report, record)
        for reports in terminalreporter.stats.values()
        for report in reports
        for record in getattr(report, "parity", ())
    ]
    folder = config.getoption("parity_report")
    # What a test expects to fail, and catches, is no failure.
    wrong = [(report.nodeid, record) for report, record in told if report.failed and record["verdict"] != "parity"]
    if not wrong and not (told and folder):
        return
    terminalreporter.section("numerical parity")
    for nodeid, record in wrong[:LISTED]:
        terminalreporter.line(f"{_printable(nodeid)}: {record['line']}")
        if record["page"]:
            terminalreporter.line(f"    {_printable(record['page'])}")
    if len(wrong) > LISTED:
        terminalreporter.line(f"and {len(wrong) - LISTED} more")
    counts = [f"{sum(r['verdict'] == v for _, r in told)} {v}" for v in ("parity", "divergence", "incomplete")]
    terminalreporter.line(f"{len(told)} assertions: {', '.join(counts)}" + (f"; pages in {folder}" if folder else ""))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

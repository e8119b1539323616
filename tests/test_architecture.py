"""The import arrows of the house, read from the sources, and that every public thing says what it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("parity", "reference", "mlx_impl")
FRAMEWORKS = ("torch", "mlx", "diffusers", "transformers")
# What a package may take of parity.
OF_PARITY = {
    "mlx_impl": ("parity.tap", "parity.layouts", "parity.instrumentation"),
    "reference": ("parity.tap", "parity.names", "parity.layouts"),
}
# The tokenizer is transformers' own on both sides.
FOREIGN = {"mlx_impl": ("reference", "torch", "diffusers"), "reference": ("mlx_impl", "mlx")}
# Files of the toolkit whose functions may import a side when they are called; all others go through a port.
LAZY = ("parity/commands/", "parity/stopwatch.py")


def sources():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(tree, *, path):
    """(line, full name, where) of everything a file imports; where is ``module``, ``function`` or ``types``."""

    def visit(node, where):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folders = Path(path).parent.parts
            base = folders[: len(folders) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{'.' * node.level}{module}.{alias.name}", where) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield node.lineno, "importlib", where
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "function"
        types = isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, "types" if types and child in node.body else where)

    yield from visit(tree, "module")


def is_of(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(source, path):
    """Lines of one file, given by its path below the root, that break an arrow."""
    package = path.partition("/")[0]
    for line, written, where in imports(ast.parse(source), path=path):
        name = written.lstrip(".")
        relative = written.startswith(".")
        if package == "parity":
            lazy = where == "types" or (where == "function" and path.startswith(LAZY))
            wrong = is_of(name, FRAMEWORKS) or (is_of(name, ("reference", "mlx_impl")) and not lazy)
        else:
            foreign = is_of(name, ("parity",)) and not is_of(name, OF_PARITY[package])
            absolute = package == "mlx_impl" and is_of(name, ("mlx_impl",)) and not relative
            outside = relative and not is_of(name, (package,))
            wrong = foreign or absolute or outside or name == "importlib" or is_of(name, FOREIGN[package])
        if wrong:
            yield f"{path}:{line}: {written} ({where})"


def test_every_import_follows_an_arrow():
    found = [v for path in sources() for v in violations(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "planted"),
    [
        ("mlx_impl/layers.py", "from parity.names import parse"),
        ("mlx_impl/layers.py", "from parity import stats"),
        ("mlx_impl/weights.py", "from parity.checkpoint import inspect"),
        ("mlx_impl/layers.py", "import parity.tap, parity"),
        ("mlx_impl/layers.py", "def f():\n    import parity.verdict"),
        ("mlx_impl/layers.py", "from mlx_impl import ops"),
        ("mlx_impl/layers.py", "from mlx_impl.ops import softmax"),
        ("mlx_impl/layers.py", "from .. import reference"),
        ("mlx_impl/layers.py", "import torch"),
        ("mlx_impl/layers.py", "import_module('parity.stats')"),
        ("reference/port.py", "from parity.stats import error"),
        ("reference/port.py", "from parity import tap, runfolder"),
        ("reference/port.py", "import mlx.core as mx"),
        ("reference/port.py", "import mlx_impl"),
        ("parity/run.py", "import torch"),
        ("parity/run.py", "import torch.nn.functional as F"),
        ("parity/run.py", "from mlx import core"),
        ("parity/run.py", "try:\n    import diffusers\nexcept ImportError:\n    pass"),
        ("parity/run.py", "class A:\n    import transformers"),
        ("parity/run.py", "from reference.port import ReferencePort"),
        ("parity/run.py", "def f():\n    import mlx_impl"),
        ("parity/run.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import reference"),
        ("parity/commands/synth.py", "from reference.presets import PRESETS"),
        ("parity/commands/synth.py", "def f():\n    import torch"),
    ],
)
def test_the_check_itself_finds_what_is_planted(path, planted):
    assert len(list(violations("import math\n" + planted, path))) == 1


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("mlx_impl/layers.py", "from parity.tap import tap\nfrom parity import tap\nfrom . import ops\nimport mlx.nn"),
        ("mlx_impl/weights.py", "from parity.layouts import locate"),
        ("reference/weights.py", "from parity.layouts.entries import Entry"),
        ("reference/port.py", "from parity.names import parse\nfrom reference import transformer\nimport torch"),
        ("parity/run.py", "import parity.referenced\nfrom parity import mlx\nimport mlxtend, torchlike"),
        ("parity/commands/synth.py", "def f():\n    from reference.presets import PRESETS"),
        ("parity/commands/synth.py", "if TYPE_CHECKING:\n    from reference.presets import Preset"),
        ("parity/stopwatch.py", "def f():\n    import mlx_impl.workload"),
    ],
)
def test_the_check_itself_lets_pass_what_is_right(path, allowed):
    assert list(violations(allowed, path)) == []


LOADED = """
import importlib, pkgutil, sys
import parity
names = sys.argv[1:] or [m.name for m in pkgutil.walk_packages(parity.__path__, "parity.")]
for name in names:
    importlib.import_module(name)
print(*sorted({module.partition(".")[0] for module in sys.modules}))
"""


def loaded_by(*modules):
    done = subprocess.run([sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["parity.cli", "parity.run"])
def test_the_command_line_and_the_engine_load_neither_framework_nor_matplotlib(module):
    loaded = loaded_by(module)
    assert "parity" in loaded
    assert not loaded & {*FRAMEWORKS, "matplotlib", "reference", "mlx_impl"}


HELP = """
import sys
from parity.cli import call
assert call([*sys.argv[1:], "--help"]) == 0
print(*sorted({module.partition(".")[0] for module in sys.modules}))
"""


@pytest.mark.parametrize("command", ["", "run", "generate", "weights check"])
def test_help_loads_nothing_that_takes_seconds(command):
    done = subprocess.run([sys.executable, "-c", HELP, *command.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"parity", "cyclopts"} <= loaded
    assert not loaded & {*FRAMEWORKS, "peft", "huggingface_hub", "matplotlib", "reference", "mlx_impl"}


def test_no_module_of_the_toolkit_loads_a_framework():
    loaded = loaded_by()
    assert {"numpy", "matplotlib"} <= loaded
    assert not loaded & {*FRAMEWORKS, "reference", "mlx_impl"}


def test_the_check_itself_sees_what_is_loaded():
    assert {"matplotlib", "PIL"} <= loaded_by("parity.plots")


def undocumented(source, path):
    """Public classes, functions and methods of a file without a docstring, and the file itself."""

    def visit(node, prefix):
        for child in getattr(node, "body", ()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name.startswith("_") or is_entry(child):
                    continue
                if not ast.get_docstring(child):
                    yield f"{path}:{child.lineno}: {prefix}{child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, f"{prefix}{child.name}.")

    tree = ast.parse(source)
    if tree.body and not ast.get_docstring(tree):
        yield f"{path}:1: the file"
    yield from visit(tree, "")


def is_entry(function):
    """An entry of the catalogue of faults says in its decorator what it is: title and fix."""
    calls = (one for one in function.decorator_list if isinstance(one, ast.Call) and isinstance(one.func, ast.Name))
    return any(
        call.func.id.endswith("fault") and {"title", "fix"} <= {word.arg for word in call.keywords} for call in calls
    )


def test_every_public_thing_says_what_it_is():
    assert [u for path in sources() for u in undocumented(path.read_text(), path.relative_to(ROOT).as_posix())] == []


def test_the_check_itself_finds_what_says_nothing():
    source = (
        "import math\nclass A:\n    'a'\n    def f(self): pass\n    def _g(self): pass\n"
        "class _B:\n    def f(self): pass\ndef h():\n    def inner(): pass\n"
        "@fault('c', title='t', fix='f')\ndef entry(p): pass\n"
    )
    assert list(undocumented(source, "x.py")) == ["x.py:1: the file", "x.py:4: A.f", "x.py:8: h"]
    assert list(undocumented("", "__init__.py")) == []

"""The doctor names what is missing and what mends it, and never fails for want of it."""

import json
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from parity import doctor
from parity.commands import doctor as command
from parity.errors import EXIT_PARITY, EXIT_PRECONDITION, MissingPackageError

CANDIDATE = {"mlx": "0.32.4", "device": "cpu", "blas": "openblas", "blas_path": "/lib/libblas.so.3", "blas_note": "",
             "tf32": False, "threads": 2}  # fmt: skip
REFERENCE = {"torch": "2.13.0", "diffusers": "0.42.1", "transformers": "4.57.6", "device": "cpu", "tf32": False}


@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything; a test takes something away."""
    sides = {"mlx_impl": dict(CANDIDATE), "reference": dict(REFERENCE)}
    speed = {"candidate": 150.0, "reference": 160.0}

    def open_port(spec):
        if isinstance(sides[spec], Exception):
            raise sides[spec]
        return SimpleNamespace(environment=lambda: sides[spec])

    monkeypatch.setattr(doctor, "open_port", open_port)
    monkeypatch.setattr(doctor, "_product", lambda side, framework: side)
    monkeypatch.setattr(doctor, "_gflops", lambda side: speed[side])
    monkeypatch.setattr(doctor, "import_module", lambda name: __import__("psutil") if name == "psutil" else None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 40))
    return SimpleNamespace(sides=sides, speed=speed, patch=monkeypatch.setattr)


def found(section, name):
    (one,) = [f for f in doctor.examine() if (f.section, f.name) == (section, name)]
    return one


def test_a_machine_with_everything_is_ready(machine, capsys):
    findings = doctor.examine()
    assert {(f.section, f.name) for f in findings if f.status != "ok" or f.fix} == set()
    assert found("candidate", "BLAS").found == "openblas, /lib/libblas.so.3"
    assert found("candidate", "threads").found == "2"
    assert command.doctor() == EXIT_PARITY
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("Ready.")
    assert max(map(len, printed.splitlines())) <= 80


def test_every_dependency_is_listed(machine):
    listed = {f.name for f in doctor.examine() if f.section == "packages"}
    assert {"mlx", "torch", "diffusers", "transformers", "numpy", "safetensors", "rich"} <= listed
    assert "pytest" not in listed


@pytest.mark.parametrize(("name", "fix"), [("mlx", "mlx"), ("diffusers", 'pip install "diffusers==0.42.1"')])
def test_a_package_that_is_not_installed_is_missing(machine, capsys, name, fix):
    real = metadata.version

    def version(asked):
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return real(asked)

    machine.patch(doctor.metadata, "version", version)
    one = found("packages", name)
    assert (one.status, one.found) == ("missing", "not installed")
    assert fix in one.fix
    assert command.doctor() == EXIT_PRECONDITION
    assert "Not ready: 1 missing." in capsys.readouterr().out


@pytest.mark.parametrize(("version", "status"), [("0.42.1", "ok"), ("0.41.0", "missing"), ("0.43.0.dev0", "missing")])
def test_versions_are_held_against_what_is_required(machine, version, status):
    real = metadata.version
    machine.patch(doctor.metadata, "version", lambda name: version if name == "diffusers" else real(name))
    one = found("packages", "diffusers")
    assert (one.found, one.required, one.status) == (version, "==0.42.1", status)


def test_a_distribution_that_is_not_installed_is_a_finding(machine):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    machine.patch(doctor.metadata, "requires", requires)
    assert found("packages", doctor.DISTRIBUTION).status == "missing"


@pytest.mark.parametrize("spec", ["mlx_impl", "reference"])
@pytest.mark.parametrize(
    ("error", "mended"),
    [
        (MissingPackageError("needs a package"), True),
        (ImportError("libopenblas.so.0: cannot open"), True),
        (ValueError("PARITY_BLAS=foo:\nexpected one of auto"), False),
    ],
)
def test_a_port_that_cannot_be_opened_is_a_finding(machine, spec, error, mended):
    machine.sides[spec] = error
    side = "candidate" if spec == "mlx_impl" else "reference"
    one = found(side, spec)
    assert one.status == "missing"
    assert " ".join(str(error).split()) in one.found
    assert bool(one.fix) == mended
    assert not [f for f in doctor.examine() if (f.section, f.name) == ("speed", side)]
    assert command.doctor() == EXIT_PRECONDITION


@pytest.mark.parametrize(
    ("blas", "status", "fix"),
    [
        ({"blas": "mkl", "blas_path": "/v/libmkl_rt.so.3"}, "ok", ""),
        ({"blas": "accelerate", "blas_path": None}, "ok", ""),
        ({"blas": "none", "blas_note": "neither OpenBLAS nor mkl"}, "warn", doctor.MEND_BLAS),
        ({"blas": "none", "blas_note": "PARITY_BLAS=none"}, "warn", "unset PARITY_BLAS"),
        ({"blas": "none", "device": "NVIDIA H200"}, "ok", ""),
    ],
)
def test_a_slow_blas_is_named_and_stops_nothing(machine, blas, status, fix):
    machine.sides["mlx_impl"] |= blas
    one = found("candidate", "BLAS")
    assert (one.status, one.fix) == (status, fix)
    assert command.doctor() == EXIT_PARITY


@pytest.mark.parametrize(("gflops", "status"), [(5.5, "warn"), (120.0, "ok")])
def test_the_measured_speed_tells_on_a_slow_blas(machine, gflops, status):
    machine.speed["candidate"] = gflops
    assert found("speed", "candidate").status == status
    assert found("speed", "reference").status == "ok"


@pytest.mark.parametrize(
    ("spec", "differs", "bug"),
    [
        ("mlx_impl", {"device": "NVIDIA H100 80GB HBM3"}, "mlx-cuda-quantized-64-inputs"),
        ("mlx_impl", {"device": "Apple M3 Max", "mlx": "0.26.2"}, "mlx-layer-norm-race"),
        ("reference", {"transformers": "5.24.0"}, "diffusers-edit-positions"),
    ],
)
def test_known_bugs_of_these_versions_and_devices_are_warned_of(machine, capsys, spec, differs, bug):
    def named():
        return {f.name: f for f in doctor.examine() if f.section == "known bugs"}

    assert named() == {}
    machine.sides[spec] |= differs
    one = named()[bug]
    assert one.status == "warn"
    assert one.fix
    assert "#" in one.found or "measured" in one.found
    assert command.doctor() == EXIT_PARITY
    printed = capsys.readouterr().out
    assert "known bugs" in printed
    assert bug in printed.replace("\n", "")


@pytest.mark.parametrize("spec", ["mlx_impl", "reference"])
def test_tf32_is_warned_of(machine, spec):
    side = "candidate" if spec == "mlx_impl" else "reference"
    assert found(side, "TF32").status == "ok"
    machine.sides[spec]["tf32"] = True
    one = found(side, "TF32")
    assert (one.status, one.found) == ("warn", "on")
    assert one.fix


def test_little_room_and_no_compiler_are_warned_of(machine):
    machine.patch(doctor.shutil, "which", lambda name: None)
    machine.patch(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=1 << 20, total=1 << 30))
    machine.patch(doctor, "import_module", lambda name: memory)
    findings = {f.name: f for f in doctor.examine() if f.section == "host"}
    for name in ("memory", "disk", "compiler"):
        assert findings[name].status == "warn"
        assert findings[name].fix


def test_psutil_that_cannot_be_imported_is_a_finding(machine):
    def refuse(name):
        raise ImportError(name)

    machine.patch(doctor, "import_module", refuse)
    assert found("host", "memory").fix == "pip install psutil"


def test_the_product_is_timed():
    calls = []
    assert doctor._gflops(calls.append, n=64, seconds=0) > 0
    assert calls == [128, 64]


@pytest.mark.parametrize(
    "blocked", [pytest.param(("mlx",), marks=pytest.mark.slow), ("torch",), ("mlx", "torch", "psutil", "packaging")]
)
def test_without_the_packages_themselves_nothing_crashes(blocked):
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "from parity.commands.doctor import doctor\nsys.exit(doctor(format='json'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_PRECONDITION, done.stderr
    report = json.loads(done.stdout)
    missing = {(f["section"], f["name"]) for f in report["findings"] if f["status"] == "missing"}
    expected = {
        "mlx": ("candidate", "mlx_impl"), "torch": ("reference", "reference"), "psutil": ("host", "memory"),
        "packaging": ("packages", "packaging"),
    }  # fmt: skip
    assert missing == {expected[name] for name in blocked}
    assert report["ready"] is False
    assert all(f["fix"] for f in report["findings"] if f["status"] == "missing")

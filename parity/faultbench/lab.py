"""Running a patient: a case on its model, with a copy of the port as the candidate, into a run folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity import lora, model_folder
from parity.faultbench.cases import Models, Setting
from parity.faultbench.patient import Planted, importable, write
from parity.faultbench.shared import SharedLockstep
from parity.model_folder import ModelFolder
from parity.run import Job
from parity.run import run as run_job
from parity.runfolder import RunFolder
from parity.suite import MODES, Planned, Suite

DRAWS = 3


@dataclass
class Lab:
    """Where patients are run, one after the other.

    Attributes:
        models: of the cases.
        scratch: a folder for copies of the port and for run folders; each is removed after its use.
    """

    models: Models
    scratch: Path
    _inspected: dict[tuple[str, tuple[str, ...]], ModelFolder] = field(default_factory=dict)
    _made: int = 0

    def layers(self, setting: Setting) -> int:
        """Blocks of a setting's model, layers of its text encoder, or steps of its pipeline."""
        config = self._model(setting).configs
        if setting.case.component == "text":
            return (config["text_encoder"].get("text_config") or config["text_encoder"])["num_hidden_layers"]
        if setting.case.component == "transformer":
            return config["transformer"]["num_layers"]
        return getattr(setting.case, "steps", 1)

    def admit(self, setting: Setting, dtype: str, planted: Planted) -> Visit:
        """Run a patient. Within the visit, as a context manager, its port can be imported."""
        self._made += 1
        name = f"port_{self._made:05d}"
        place = self.scratch / name
        write(place, name, planted)
        model = self._model(setting)
        loras = lora.inspect(self.models.loras(setting.model), model.configs.get("transformer"))
        planned = Planned(setting.case, (dtype,), MODES, setting.detail, DRAWS)
        job = Job(Suite("faults", "a planted fault", str(model.root), (planned,)), model, name, loras=loras)
        return Visit(name, place, job)

    def _model(self, setting: Setting) -> ModelFolder:
        key = setting.model, setting.case.folders
        if key not in self._inspected:
            self._inspected[key] = model_folder.inspect(self.models.folders[setting.model], setting.case.folders)
        return self._inspected[key]


@dataclass
class Visit:
    """One patient, as a context manager: run on entering, removed on leaving.

    Attributes:
        name: of the port.
        place: folder of the copy and of the run.
        job: what is run.
        result: contents of ``parity.json``.
    """

    name: str
    place: Path
    job: Job
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.place / "run"

    def __enter__(self) -> Visit:
        self._import = importable(self.place, self.name)
        self._import.__enter__()
        try:
            folder = RunFolder.open(self.folder, {"port": self.name})
            command = f"parity run --candidate {self.name}"
            self.result = run_job(self.job, folder, command, lambda *_: None, SharedLockstep)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._import.__exit__(None, None, None)
        shutil.rmtree(self.place, ignore_errors=True)


def sources_of(result: dict[str, Any]) -> tuple[str, ...]:
    """The sources of a run, in isolated mode: there a divergence cannot hide those of later stages."""
    found = [name for case in result["cases"] if case["mode"] == "isolated" for name in case["sources"]]
    return tuple(dict.fromkeys(found))

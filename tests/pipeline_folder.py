"""A whole model in a few megabytes, in diffusers' folder layout: two transformer blocks, a narrow VAE, everything else
as in the synthetic presets. Made once for each process.
"""

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from reference import synthetic
from reference.presets import Preset

BLOCKS = 2


@lru_cache(maxsize=2)
def write_pipeline(zero_cond_t: bool = False) -> Path:
    """The folder, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="parity-pipeline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    synthetic.write(Preset("mini", BLOCKS, 2, 64, (8, 28, 28), 256, vae_base_dim=8, zero_cond_t=zero_cond_t), 0, folder)
    return folder

"""A unit's traces, small and written as runs write them."""

import numpy as np

from parity import trace
from parity.errors import UsageError
from parity.names import parse, qwen_image_transformer
from parity.stats import describe

GRAPH = qwen_image_transformer(2, "block")
ABOUT = {
    "side": "candidate", "case": {"name": "square", "seed": 0, "img_shapes": [[1, 4, 4]]}, "dtype": "float32",
    "mode": "accumulated", "component": "transformer",
    "configs": {"transformer": {"num_layers": 2, "attention_head_dim": 16}}, "environment": {},
}  # fmt: skip


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    widths = {"mod": 48, "norm_out.mod": 16}
    return {
        name: (rng.standard_normal((1, 24, widths.get(parse(name).kind, 8))) * (i + 1)).astype(np.float32)
        for i, name in enumerate(GRAPH.expected)
    }


def write(folder, made, **about):
    chunks = {"mod": 6, "norm_out.mod": 2}
    stats = {name: vars(describe(x, chunks=chunks.get(parse(name).kind, 0))) for name, x in made.items()}
    trace.write(folder, stats, ABOUT | about)


def attempt(function, *arguments):
    """What a function gives, and what it says where it refuses."""
    try:
        return function(*arguments), ""
    except UsageError as error:
        return None, str(error)

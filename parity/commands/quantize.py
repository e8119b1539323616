"""``parity weights quantize``: a model with its linear layers packed, as mflux saves it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity import weights_convert, weights_quantize
from parity.commands.weights import bar
from parity.commands.weights_option import find_model
from parity.errors import EXIT_PARITY
from parity.layer_classes import in_general
from parity.memory import spell
from parity.weights_quantize import Quantization, rules_for


def quantize(
    source: str,
    target: Path,
    /,
    *,
    bits: Annotated[int, Parameter(help="of layers that no rule matches: 2, 3, 4, 5, 6 or 8")] = 4,
    group_size: Annotated[int, Parameter(help="inputs that share a scale: 32, 64 or 128")] = 64,
    rule: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="PATTERN=BITS[:GROUP] or PATTERN=keep on diffusers' names; the last match counts"),
    ] = (),
    preset: Annotated[
        Literal["mflux", "mlx-gen"] | None, Parameter(help="what another tool writes at 4 bits; rules come on top")
    ] = None,
    scales_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        Parameter(help="of scales and biases, and of the weights as they are packed; their own if not given"),
    ] = None,
    force: Annotated[bool, Parameter(negative=(), help="replace weights that are there")] = False,
) -> int:
    """Pack the transformer's linear layers with MLX and write the model in the layout that mflux saves.

    Layer by layer, so that a model larger than memory can be quantized; bit for bit what mx.quantize gives. Text
    encoder and VAE go along unpacked. The preset mflux keeps img_mod at 8 bits, as newer 4-bit files of mflux do
    (mflux#517; older ones have 4 bits everywhere: no preset); mlx-gen keeps the embeddings, the head and all
    modulation unpacked. The result has its name only when it is whole.

    Parameters
    ----------
    source
        a model's folder, a transformer's, a single safetensors file, or what --weights takes.
    target
        name of the new folder.
    """
    from mlx_impl.quantize import pack

    err = Console(stderr=True, highlight=False, soft_wrap=True)
    rules = rules_for(bits, preset, rule)
    found = weights_quantize.plan(find_model(source), target, pack, bits, group_size, rules, scales_dtype)
    for note in found.conversion.notes:
        err.print(f"note: {note}", markup=False)
    with bar("packing", found.after) as advance:
        weights_convert.write(found.conversion, target, force, advance, lambda line: err.print(line, markup=False))
    _print(found, target)
    return EXIT_PARITY


def _print(found: Quantization, target: Path) -> None:
    out = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for how, count in found.census():
        table.add_row(f"{count:,}", f"layer{'s' if count > 1 else ''} {how}")
    out.print(table)
    for layer in in_general(found.choice.odd):
        width = next(w for name, w in found.choice.odd.items() if in_general([name]) == [layer])
        out.print(Text(f"not packed: {layer}, whose width {width} its group size does not divide", "dim"))
    saved = 1 - found.after / found.before
    out.print(Text(f"{target}: {spell(found.before)} → {spell(found.after)} (−{saved:.0%})"), soft_wrap=True)

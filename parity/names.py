"""The vocabulary of checkpoints: grammar, expected set, order, stages and dataflow parents.

A name is a dotted path, blocks zero-padded so that names sort: ``block.07.img.attn``.
A `Graph` holds the names of one component at one level of detail in the order in which they
are made, with the parents of each; verdicts and sources are computed on a graph and know
nothing of Qwen-Image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

LEVELS = ("kinds", "block", "full")
STREAMS = ("img", "txt")

# Per stream and block, in the order in which a block makes them.
BLOCK_KINDS = ("mod", "normed", "modulated", "q", "k", "v", "attn", "mid", "normed2", "modulated2", "ffn", "out")
# The seven kinds that the guide prints; the level "kinds" has only these.
GUIDE_KINDS = ("img_in", "normed", "mod", "modulated", "attn", "ffn", "final")

_EMBED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("img_in", ()),
    ("txt_norm", ()),
    ("txt_in", ("txt_norm",)),
    ("time.proj", ()),
    ("time.linear_1", ("time.proj",)),
    ("time.silu", ("time.linear_1",)),
    ("temb", ("time.silu",)),
    ("rope.img", ()),
    ("rope.txt", ()),
)

# What repeats along a model: a block of the transformer or of the vision tower, a layer of the text encoder, a step.
_REPEATED = re.compile(
    r"(?P<before>(?:[a-z0-9_]+\.)*?)(?P<unit>block|layer|step)\.(?P<index>\d{2,})\.(?P<stream>(?:img|txt)\.)?(?P<kind>[a-z0-9_.]+)"
)

# A longer name is no path of ours: its index may have too many digits, its steps may lie too deep in each other.
LONGEST = 1000
# Names of the largest graph, each asked about again and again.
_REMEMBERED = 1 << 18


@dataclass(frozen=True)
class Parts:
    """A name taken apart; outside of what repeats, `block` and `stream` are None.

    Attributes:
        kind: what is the same in every repetition: ``attn``.
        block: index of the block, layer or step.
        stream: what runs through the repetitions: ``img`` and ``txt`` in the transformer, ``text``,
            ``vision``, ``step``; of a transformer inside a pipeline's step, ``step.03.cond.img``.
    """

    kind: str
    block: int | None = None
    stream: str | None = None


def parse(name: str) -> Parts:
    """Take a checkpoint name apart; a name outside of what repeats is its own kind."""
    return _parse(name) if len(name) <= LONGEST else Parts(kind=name)


@lru_cache(maxsize=_REMEMBERED)
def _parse(name: str) -> Parts:
    match = _REPEATED.fullmatch(name)
    if match is None:
        return Parts(kind=name)
    if match["unit"] == "step" and (inner := parse(match["kind"])).block is not None:
        # A step's own values are one series; what happens inside one is a series of that step's.
        within = f"step.{match['index']}.{match['kind'].partition('.')[0]}"
        return Parts(inner.kind, inner.block, f"{within}.{(inner.stream or '').rpartition('.')[2]}")
    stream = match["before"].rstrip(".") or match["unit"]
    if match["stream"]:
        stream = ".".join(filter(None, (match["before"].rstrip("."), match["stream"].rstrip("."))))
    return Parts(match["kind"], int(match["index"]), stream)


def block_stage(index: int) -> str:
    """Name of a block as a stage and as a scope: ``block.07``."""
    return f"block.{index:02d}"


@dataclass(frozen=True)
class Graph:
    """Checkpoints in the order they are made, with dataflow parents and stages.

    Attributes:
        parents: name -> names it is computed from; the keys are all names known, in order.
        stage: name -> the stage that makes it.
        expected: the names a run at this level must produce, in order.
        exact: names whose values must equal the reference's bit for bit: token ids, masks,
            positions, noise levels. Every other value is judged by its floor.
        pictures: names of B H W 3 values in 0…1 that a run keeps as pictures to look at.
    """

    parents: Mapping[str, tuple[str, ...]]
    stage: Mapping[str, str]
    expected: tuple[str, ...]
    exact: frozenset[str] = frozenset()
    pictures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, parents in self.parents.items():
            unknown = [p for p in parents if p not in seen]
            if unknown:
                raise ValueError(f"{name}: parents {unknown} are not made before it")
            seen.add(name)
        strangers = [name for name in (*self.expected, *self.exact, *self.pictures) if name not in self.parents]
        if strangers or set(self.stage) != seen:
            raise ValueError(f"expected names or stages outside the graph: {strangers or set(self.stage) ^ seen}")

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Stages in order."""
        return tuple(dict.fromkeys(self.stage.values()))

    def names_of(self, stage: str) -> tuple[str, ...]:
        """The expected names that a stage makes, in order."""
        return tuple(name for name in self.expected if self.stage[name] == stage)

    def visible_parents(self, name: str, visible: Iterable[str], *, within_stage: bool = False) -> tuple[str, ...]:
        """The nearest ancestors among `visible`, looking through all others.

        Args:
            name: the checkpoint asked about.
            visible: names that count (those with a verdict that says something).
            within_stage: stop at the stage's own border. In isolated mode a stage is fed the
                reference's state, so what an earlier stage did cannot have reached it.
        """
        visible = visible if isinstance(visible, set | frozenset) else set(visible)
        found: dict[str, None] = {}
        pending = list(reversed(self.parents[name]))
        seen: set[str] = set()
        while pending:
            parent = pending.pop()
            if parent in seen or (within_stage and self.stage[parent] != self.stage[name]):
                continue
            seen.add(parent)
            if parent in visible:
                found[parent] = None
            else:
                pending.extend(reversed(self.parents[parent]))
        return tuple(found)


def qwen_image_transformer(num_layers: int, level: str = "full") -> Graph:
    """Graph of the Qwen-Image transformer.

    Args:
        num_layers: number of dual-stream blocks.
        level: ``kinds`` (the guide's seven), ``block`` (all but q, k and v) or ``full``.

    Raises:
        ValueError: an unknown level, or no blocks.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    if num_layers < 1:
        raise ValueError(f"a transformer has at least one block, not {num_layers}")
    parents = dict(_EMBED)
    stage = dict.fromkeys(parents, "embed")
    for index in range(num_layers):
        for name, its_parents in _block(index):
            parents[name] = its_parents
            stage[name] = block_stage(index)
    last = f"{block_stage(num_layers - 1)}.img.out"
    for name, its_parents in (
        ("norm_out.mod", ("temb",)),
        ("norm_out", (last, "norm_out.mod")),
        ("final", ("norm_out",)),
    ):
        parents[name] = its_parents
        stage[name] = "head"
    return Graph(parents, stage, tuple(name for name in parents if _in_level(name, level)))


def _in_level(name: str, level: str) -> bool:
    kind = parse(name).kind
    if level == "kinds":
        return kind in GUIDE_KINDS
    return level == "full" or kind not in ("q", "k", "v")


def _block(index: int) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Names and parents of one block, both streams, each name after its parents."""
    here = block_stage(index)
    entering = {s: f"{s}_in" if index == 0 else f"{block_stage(index - 1)}.{s}.out" for s in STREAMS}
    joint = tuple(f"{here}.{s}.{x}" for s in ("txt", "img") for x in ("q", "k", "v"))
    for kind in BLOCK_KINDS:
        for s in STREAMS:
            p = f"{here}.{s}"
            its_parents = {
                "mod": ("temb",),
                "normed": (entering[s],),
                "modulated": (f"{p}.normed", f"{p}.mod"),
                "q": (f"{p}.modulated", f"rope.{s}"),
                "k": (f"{p}.modulated", f"rope.{s}"),
                "v": (f"{p}.modulated",),
                "attn": joint,
                "mid": (entering[s], f"{p}.mod", f"{p}.attn"),
                "normed2": (f"{p}.mid",),
                "modulated2": (f"{p}.normed2", f"{p}.mod"),
                "ffn": (f"{p}.modulated2",),
                "out": (f"{p}.mid", f"{p}.mod", f"{p}.ffn"),
            }[kind]
            yield f"{p}.{kind}", its_parents

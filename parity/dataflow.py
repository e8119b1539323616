"""What each row of an entry is computed from, among the rows of that entry: the edges that the page draws."""

from __future__ import annotations

from parity.components import build_graph
from parity.sections import Entry

# Of more parents than this a drawing shows nothing; a file from elsewhere may claim any number.
MOST = 32


def parents_of(entry: Entry) -> list[tuple[int, ...]]:
    """Of each row, in order, how many rows before it each of its parents stands.

    Parents that the entry has no row of are looked through, as `parity.names.Graph.visible_parents` does it; here in
    one pass over all names. Without a graph that can be built, no row has parents.
    """
    rows = entry["checkpoints"]
    at = {row["name"]: index for index, row in enumerate(rows)}
    try:
        parents = build_graph(entry["graph"]).parents
    except (KeyError, TypeError, ValueError, AttributeError):
        parents = {}
    near: dict[str, tuple[str, ...]] = {}
    for name, its in parents.items():
        seen = dict.fromkeys(one for parent in its for one in ((parent,) if parent in at else near[parent]))
        near[name] = tuple(seen)[:MOST]
    return [
        tuple(at[row["name"]] - at[parent] for parent in near.get(row["name"], ()) if at[parent] < at[row["name"]])
        for row in rows
    ]

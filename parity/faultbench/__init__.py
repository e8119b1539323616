"""Known faults planted in copies of the MLX port, to measure how well they are found.

A fault is a change of the port's source, as somebody might have written it. A *patient* is a copy of the package
``mlx_impl`` with one or two faults in it, at all places or only at some: it is a port like any other, and nobody who
looks at it is told what is wrong. To make one by hand::

    python -m parity.faultbench.patient modulation.order:swapped --blocks 0 --stream img DIR

writes a package into DIR, and prints its name and what a run of it should show. ``--list`` shows all faults.
"""

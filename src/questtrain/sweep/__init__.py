"""Sweeps: one YAML file an experiment, expanded to the runs it stands for. Knows no torch."""

from questtrain.sweep.grid import Scalar, Sweep, overrides, points, read_sweep, sweep_names

__all__ = ["Scalar", "Sweep", "overrides", "points", "read_sweep", "sweep_names"]

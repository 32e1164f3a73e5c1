"""Sweeps: a published ablation, or an open search, as data that one command runs.

space       a YAML file of search_spaces/: axes, fixed settings, seeds, and the paper's number of each cell
axis        what is varied: a recipe key and its values, or named bundles of settings (a data set, a row of a table)
cell        one combination of values, named by their labels; a cell of the table
trial       a cell with a seed: one run directory, `trials/<hash of its recipe>-s<seed>`, under the sweep directory
outcome     how a trial ended: finished, collapsed, diverged, pruned or failed, with its reason (`trial.json`)
scale       `full`: as published; `cpu`: the small version that the space states

Nothing here imports Ray: raysurl.scale.tune runs the trials, raysurl.scale.nested those that have several workers.
"""

"""Models from elsewhere: checkpoints of diffusers, and any network whose output is a known combination of x and the noise.

`load_checkpoint` (checkpoint.py) finds the files of a folder or a Hub id (place.py), builds the network (weights.py) and reads the
scheduler's config (schedulers.py, by the table of scheduler_table.py and the readers of families.py). `wrap` adapts a network that is
already in memory (wrap.py). check.py finds out whether a network is read as it was trained: it calls the network (called_network.py) in
the ways of readings.py, compares the errors that products.py computes, and states its findings (diagnosis.py). export.py is the way out.
Nothing here is imported by `import diffusional`.
"""

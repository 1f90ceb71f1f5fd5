"""Models from elsewhere: checkpoints of diffusers, and any network whose output is a known combination of x and the noise.

`load_checkpoint` reads a folder or a Hub id (checkpoint.py), `wrap` adapts a network that is already in memory (wrap.py), and
schedulers.py is the table of what each of diffusers' schedulers means. check.py finds out whether a
network is read as it was trained. Nothing here is imported by `import diffusional`.
"""

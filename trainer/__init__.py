"""The library that trains: data, models, parallelism from outside, loop, checkpoints, metrics."""

"""Benchmarks of single figures, each a command of `midstream bench`."""

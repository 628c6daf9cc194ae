"""Tables that an experiment is for: each computed from the runs alone, so that it can be made again at any time."""

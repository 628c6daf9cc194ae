"""The embedded translator: deterministic, without network, exact about what it did not understand."""

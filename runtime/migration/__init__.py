"""Changing a pipeline while it serves: the pure protocol, its coordinator, pre-copy bookkeeping, the journal."""

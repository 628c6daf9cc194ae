"""The function, as func's scaffolding imports it."""

from function.func import new

__all__ = ["new"]

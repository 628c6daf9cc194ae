"""Proof that what runs and what is installed meets the intents: checker, transfer guard, drift loop.

Written apart from the compiler: nothing here imports `intents.compilation`, and nothing here trusts a path or an
allowed node that it was told.
"""

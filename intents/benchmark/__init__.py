"""Sentences, inventories and what has to come of them, written before any translator; see README.md."""

"""The nouns that everything else here speaks of: inventory, predicate, typed intent, refusal."""

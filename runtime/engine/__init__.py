"""Everything that touches vLLM's internals, so that an upgrade of vLLM is one review."""

"""`midstream bench reconfigure`: what a live re-split costs, beside stock vLLM."""

"""Experiments: one YAML file says what is started, what is sent, what happens meanwhile, and what is compared."""

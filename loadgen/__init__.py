"""Gap-aware load: clients, metrics and experiments that prove every claim of Midstream."""

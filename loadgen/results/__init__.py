"""What a run measured: written while it runs, read at any time, turned into figures."""

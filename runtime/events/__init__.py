"""CloudEvents: what Midstream's parts tell each other and the world."""

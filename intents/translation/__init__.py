"""From a sentence to a typed intent: the interface, and the translators behind it."""

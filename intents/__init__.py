"""Privacy intents: from a sentence to placement and routes that provably hold."""

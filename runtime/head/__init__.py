"""The process that owns the OpenAI endpoint: vLLM's own server, plus the control API on the same port."""

"""The platform: run the same LLMPipeline object on this machine or on a cluster."""

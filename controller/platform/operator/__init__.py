"""The operator: keeps what runs on a cluster in step with the `LLMPipeline` objects of a namespace."""

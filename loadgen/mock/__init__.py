"""A mock of an OpenAI server whose latencies and faults are settings: the truth that a measurement is held against."""

"""The custom runtime: what must stay warm between function instances, and what runs hot."""

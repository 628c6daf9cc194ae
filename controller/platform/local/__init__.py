"""The platform on this machine: a supervisor, its children, and the folder that knows of them."""

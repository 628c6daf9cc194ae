"""How head and stages talk: typed frames over ZeroMQ, raw tensor buffers, never a pickle."""

"""`midstream bench soak`: random kills and cuts under load."""

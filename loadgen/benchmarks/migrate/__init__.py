"""`midstream bench migrate`: what it costs to move layers to another machine under load."""

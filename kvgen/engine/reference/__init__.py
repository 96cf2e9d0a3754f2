"""The reference engine: the model written once, in plain NumPy, to be read."""

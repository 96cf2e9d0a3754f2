"""Kernels below the two functions that walk all layers: vectors, products, attention."""

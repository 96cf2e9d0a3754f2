"""The fast engine: the decoder compiled by Numba, one function per token over all layers."""

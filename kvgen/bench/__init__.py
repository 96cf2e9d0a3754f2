"""The experiment: the same tokens with and without the KV cache, timed and compared."""

"""Other engines on the same weights: not part of the suite, for figures that can be had again.

1. Build llama.cpp's `llama-bench` and `llama-quantize` for this machine (-DGGML_NATIVE=ON).
2. `pip install -e ".[peers]"`
3. `python -m tests.peers.models FOLDER --quantize .../llama-quantize`
4. `python -m tests.peers.compare FOLDER --llama-bench .../llama-bench`
"""

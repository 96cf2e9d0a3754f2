"""Other engines on the same weights: not part of the suite, for figures that can be had again.

tests/README.md says which engines, how they are installed and how they are measured.

1. Build `llama-bench` of llama.cpp and of ik_llama.cpp, and llama.cpp's `llama-quantize`, for this
   machine (-DGGML_NATIVE=ON). `pip install -e ".[peers]"`
2. `python -m tests.peers.models FOLDER --quantize .../llama-quantize --real CHECKPOINT`
3. `python -m tests.peers.convert FOLDER --openvino PYTHON --onnxruntime PYTHON`
4. `python -m tests.peers.compare FOLDER --llama-bench PATH --ik-bench PATH --openvino PYTHON
   --onnxruntime PYTHON --json FILE`
5. `python -m tests.peers.compare --table FILE --write`
"""

"""The golden table, live against an installed `transformers` (extra `parity`)."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvgen.attention.steps import attention_weights
from kvgen.checkpoint.families import FAMILIES
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import Loader
from tests.sequences import recorded
from tests.test_golden import TOLERANCE

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [pytest.mark.parity, pytest.mark.slow]  # the golden files stand for it elsewhere
WEIGHT_TOLERANCE = 1e-5
# Training, padding, classifiers, and how the same numbers are computed.
NO_ARITHMETIC = {
    "_attn_implementation", "attention_dropout", "attn_pdrop", "classifier_dropout", "dropout",
    "embd_pdrop", "embed_dropout", "embedding_dropout", "hidden_dropout", "initializer_range",
    "is_decoder", "layerdrop", "pad_token_id", "reorder_and_upcast_attn", "resid_dropout",
    "resid_pdrop", "residual_dropout", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "use_cache",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(
    name: str, kind: str, tiny_folder: Callable[..., Path], tiny_model: Loader
) -> None:
    ids = tiny.make_ids(100, seed=7)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder(name, kind), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    for backend in ("numpy", "numba"):
        logits = tiny_model(name, kind=kind, backend=backend, cache_dtype="f32").logits(ids)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["llama_gqa", "gpt2", "gpt_neox", "mistral", "qwen3", "gemma2", "gemma3"]
)
def test_attention_weights_equal_transformers(
    name: str, tiny_folder: Callable[..., Path], tiny_model: Loader
) -> None:
    # Grouped heads, learned positions, windows, norms of queries and keys, soft caps.
    ids = tiny.make_ids(100, seed=7)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder(name), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids]), output_attentions=True).attentions
    for backend in ("numpy", "numba"):
        engine = tiny_model(name, backend=backend, cache_dtype="f32").engine
        _, trace = recorded(engine, ids, n_prompt=80)
        for layer, theirs in zip(trace.layers, expected, strict=True):
            np.testing.assert_allclose(
                attention_weights(layer), theirs[0].numpy(), rtol=0, atol=WEIGHT_TOLERANCE
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_that_transformers_reads_is_declared(name: str) -> None:
    """Attributes of the config that a modelling file asks for, and fields of the config's class."""
    name = "gemma3_text" if name == "gemma3" else name
    module = importlib.import_module(type(transformers.AutoConfig.for_model(name)).__module__)
    modelling = Path(module.__file__ or "").parent
    source = next(modelling.glob("modeling_*.py")).read_text(encoding="utf-8")
    asked = set(re.findall(r'config(?:, "|\.)([a-z_]\w*)', source))
    fields = vars(transformers.AutoConfig.for_model(name)).keys()
    base = vars(transformers.PreTrainedConfig()).keys()
    assert len(asked & FAMILIES[name].reads) > 8
    left = (asked & fields) - base - FAMILIES[name].reads - NO_ARITHMETIC
    # Gemma 3 takes the cap of scores from its config and hands it to nobody.
    assert left == ({"attn_logit_softcapping"} if name == "gemma3_text" else set())

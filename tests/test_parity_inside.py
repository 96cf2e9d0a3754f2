"""Lens, contributions and patches, against hooks in an installed `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kvgen.attention.contributions import contributions
from kvgen.attention.lens import logit_lens
from kvgen.attention.patch import patch
from tests import tiny
from tests.by_hand import record_states
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-4


class Names(NamedTuple):
    """Where a family keeps its parts; those of a layer are names within it."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    output: str = "self_attn.o_proj"
    mlp: str = "mlp"  # whatever makes what the MLP adds, its norm included
    norm_behind_attention: str | None = None


_BEHIND = Names(mlp="post_feedforward_layernorm", norm_behind_attention="post_attention_layernorm")
NAMES = {
    "llama_gqa": Names(),
    "gpt2": Names("transformer.h", "transformer.ln_f", "attn.c_proj"),
    "gpt_neox": Names("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense"),
    "gemma2": _BEHIND,
    "gemma3": _BEHIND,
    "qwen3": Names(),
    "olmo2": _BEHIND,
    "granite": Names(),
    "cohere": Names(),
    "phi": Names("model.layers", "model.final_layernorm", "self_attn.dense"),
    "mistral": Names(),
    "gpt_neo": Names("transformer.h", "transformer.ln_f", "attn.attention.out_proj"),
    "stablelm_parallel": Names(),
    "starcoder2": Names(),
}
# OPT has no module around its MLP, whose last product runs without one.


class Reference:
    """A model of transformers, what its hooks hear, and what they put in its place."""

    def __init__(self, folder: Path, names: Names) -> None:
        auto = transformers.AutoModelForCausalLM
        self.model = auto.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.config, self.names = self.model.config, names
        self.layers = self.model.get_submodule(names.layers)
        self.final_norm = self.model.get_submodule(names.final_norm)
        self.head = self.model.get_output_embeddings()
        self.n_layers = len(self.layers)

    def outputs(self) -> list[Any]:
        """W_O of every layer."""
        return [layer.get_submodule(self.names.output) for layer in self.layers]

    def logits(self, ids: Sequence[int]) -> np.ndarray:  # [T, V]
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)])).logits[0].numpy()

    def states(self, ids: Sequence[int]) -> Any:
        """What leaves every layer, [L, T, C], before the final norm."""
        with torch.no_grad(), hear([self.final_norm]) as heard:
            hidden = self.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
        own = self.final_norm(heard[0][0])
        torch.testing.assert_close(own[0], hidden[-1][0])  # the last of them is already normed
        return torch.stack([*(each[0] for each in hidden[1:-1]), heard[0][0][0]])

    def of_normed(self, normed: Any, *, cap: bool = True) -> np.ndarray:
        """Logits of states behind the final norm."""
        with torch.no_grad():
            logits = self.head(normed) * getattr(self.config, "logit_scale", 1)
            logits = logits / getattr(self.config, "logits_scaling", 1)
        bound = getattr(self.config, "final_logit_softcapping", None)
        if bound and cap:
            logits = bound * torch.tanh(logits / bound)
        return logits.numpy()


@contextmanager
def hear(modules: Sequence[Any]) -> Iterator[list[list[Any]]]:
    """What goes into some modules, and what comes out of them: two rows for all of them."""
    inputs: list[Any] = [None] * len(modules)
    results: list[Any] = [None] * len(modules)

    def listener(place: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, result: Any) -> None:
            inputs[place] = args[0] if args else kwargs["hidden_states"]
            results[place] = result[0] if isinstance(result, tuple) else result

        return hook

    hooks = [
        module.register_forward_hook(listener(place), with_kwargs=True)
        for place, module in enumerate(modules)
    ]
    try:
        yield [inputs, results]
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def replaced(module: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Something else goes into a module."""

    def hook(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (change(args[0].clone()), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"].clone())}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def frozen(module: Any, at: Any) -> Callable[[Any], Any]:
    """A norm as a linear function without its shift: its scale is that of one vector [C]."""
    kind = type(module).__name__
    weight = 1 + module.weight if kind.startswith("Gemma") else module.weight
    eps = getattr(module, "eps", None) or module.variance_epsilon
    centred = "LayerNorm" in kind

    def function(x: Any) -> Any:
        x, like = (one - one.mean(-1, keepdim=True) if centred else one for one in (x, at))
        return x / torch.sqrt(like.square().mean() + eps) * weight

    shift = getattr(module, "bias", None)
    torch.testing.assert_close(function(at) + (0 if shift is None else shift), module(at))
    return function


@pytest.fixture(scope="module", params=NAMES)
def reference(
    request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]
) -> tuple[str, Reference]:
    return request.param, Reference(tiny_folder(request.param), NAMES[request.param])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lens_equals_hidden_states_of_transformers(
    backend: str, reference: tuple[str, Reference], tiny_model: Loader
) -> None:
    name, theirs = reference
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    lens = logit_lens(model.engine, record_states(model.engine, tiny.make_ids(24, seed=7)))
    with torch.no_grad():
        logits = theirs.of_normed(theirs.final_norm(theirs.states(tiny.make_ids(24, seed=7))))
    exact = torch.softmax(torch.tensor(logits).double(), -1).numpy()
    best = -np.sort(-exact, axis=-1)[..., :5]
    np.testing.assert_allclose(lens.probabilities, best, rtol=0, atol=TOLERANCE)
    named = np.take_along_axis(exact, lens.ids.astype(np.int64), axis=-1)
    np.testing.assert_allclose(named, best, rtol=0, atol=TOLERANCE)
    entropies = -(exact * np.log(exact)).sum(-1)
    np.testing.assert_allclose(lens.entropies, entropies, rtol=0, atol=3 * TOLERANCE)
    assert lens.final_ids.tolist() == logits[-1].argmax(-1).tolist()


@torch.no_grad()
def parts_of(
    theirs: Reference, ids: Sequence[int], query: int, tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What heads [L, H, tokens] and MLPs [L, tokens] add to logits, by hooks."""
    mlps = [layer.get_submodule(theirs.names.mlp) for layer in theirs.layers]
    outputs = theirs.outputs()
    with hear([*outputs, *mlps, theirs.final_norm]) as (inputs, results):
        theirs.logits(ids)
    norm = frozen(theirs.final_norm, inputs[-1][0, query])
    nothing = theirs.of_normed(torch.zeros_like(inputs[-1][0, query]), cap=False)
    scale = getattr(theirs.config, "residual_multiplier", 1)

    def added(x: Any) -> np.ndarray:
        part: np.ndarray = (theirs.of_normed(norm(scale * x), cap=False) - nothing)[list(tokens)]
        return part

    heads = []
    for layer, output, z, written in zip(theirs.layers, outputs, inputs, results, strict=False):
        behind: Callable[[Any], Any] = torch.nn.Identity()
        if theirs.names.norm_behind_attention is not None:
            module = layer.get_submodule(theirs.names.norm_behind_attention)
            behind = frozen(module, written[0, query])
        row = z[0, query].view(theirs.config.num_attention_heads, -1)
        for head in range(len(row)):
            alone = torch.zeros_like(row)
            alone[head] = row[head]
            part = output(alone.view(1, -1)) - output(torch.zeros_like(alone).view(1, -1))
            heads.append(added(behind(part[0])))
    of_mlps = [added(results[len(outputs) + layer].view(len(ids), -1)[query])
               for layer in range(len(mlps))]  # fmt: skip
    return np.array(heads).reshape(len(mlps), -1, len(tokens)), np.array(of_mlps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_contributions_equal_hooks_of_transformers(
    backend: str, reference: tuple[str, Reference], tiny_model: Loader
) -> None:
    name, theirs = reference
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    ids = tiny.make_ids(24, seed=8)
    run = record_states(model.engine, ids)
    for query in (6, 23):
        heads, mlps = parts_of(theirs, ids, query, [3, 99])
        for token, against, columns in [(3, None, [1, 0]), (99, None, [0, 1]), (3, 99, [1, -1])]:
            found = contributions(
                model.engine, model.params, run, query=query, token=token, against=against
            )
            np.testing.assert_allclose(found.heads, heads @ columns, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(found.mlps, mlps @ columns, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def patched_by_hooks(
    theirs: Reference, ids: Sequence[int], source: Sequence[int], tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The difference of two logits with each state [L, T] and each head's z [L, H] replaced."""
    layers, outputs = list(theirs.layers), theirs.outputs()
    with hear([*layers, *outputs]) as (inputs, _):
        theirs.logits(source)

    def difference() -> float:
        one, other = theirs.logits(ids)[-1, list(tokens)]
        return float(one - other)

    of_states, of_heads = [], []
    for layer, module in enumerate(layers):
        for position in range(len(ids)):

            def state(x: Any, layer: int = layer, position: int = position) -> Any:
                x[:, position] = inputs[layer][:, position]
                return x

            with replaced(module, state):
                of_states.append(difference())
    H = theirs.config.num_attention_heads
    for layer, module in enumerate(outputs):
        for head in range(H):

            def slice_of(x: Any, layer: int = layer, head: int = head) -> Any:
                D = x.shape[-1] // H
                x[..., head * D : (head + 1) * D] = (
                    inputs[len(layers) + layer][..., head * D : (head + 1) * D]
                )  # fmt: skip
                return x

            with replaced(module, slice_of):
                of_heads.append(difference())
    shape = (len(layers), -1)
    return np.array(of_states).reshape(shape), np.array(of_heads).reshape(shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_patches_equal_hooks_of_transformers(
    backend: str, reference: tuple[str, Reference], tiny_model: Loader
) -> None:
    name, theirs = reference
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    ids = tiny.make_ids(14, seed=9)
    source = [*ids[:2], 44, *ids[3:9], 12, *ids[10:]]
    states, heads = patched_by_hooks(theirs, ids, source, [3, 99])
    for site, expected in [("residual", states), ("head", heads)]:
        found = patch(model.engine, model.params, ids, source, site=site, token=3, against=99)
        np.testing.assert_allclose(found.patched, expected, rtol=0, atol=TOLERANCE)


def test_every_family_with_a_hook_is_a_configuration() -> None:
    assert NAMES.keys() <= CONFIGS.keys()

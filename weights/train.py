"""From a folder of texts to a small model: tokenizer, training on a CPU or a GPU, bits per byte.

    python weights/train.py run TEXTS FOLDER            # Ctrl-C saves; the same command goes on
    python weights/train.py score TEXTS/valid.txt FOLDER
    python weights/train.py loops FOLDER                # greedy stories, and how they repeat

TEXTS holds train.txt and valid.txt, documents separated by a line `<|endoftext|>`. FOLDER becomes a
Hugging Face folder of LLaMA type; FOLDER/run keeps the checkpoints and the curve.

* Muon for the matrices, AdamW for the embedding and the norms. The rate warms up, stays, and falls
  to 0 in a line (Hägele et al. 2024, 2405.18392). A larger --tokens prolongs a run, finished or
  not, from the checkpoint kept where its decay began.
* Documents are shuffled anew each epoch, joined to one stream and cut into blocks of 1024 tokens,
  which are read as windows of 256, later of 512, at last whole: short windows are cheaper, long
  ones teach what a context holds. Attention crosses the documents of a window. A share of the
  blocks is moved to where a document begins: that is how a prompt looks.
* A small share of the windows is no text: random tokens, repeated, where only the repeats count.
  They are there so that an induction head forms within a few million tokens. They never begin with
  `<|endoftext|>`: at 3 % with it, a prompt was taken for one of them, and text for a list to copy.
* While the rate falls, a share of the windows is the model's own greedy text; kvgen writes some
  more every 100 steps, and all is kept: a model that sees only its newest loops goes back to the
  old ones. The loss on it is a cross-entropy to a damped target: what the model predicts where the
  same five tokens came first, with the probability of the repeated token times REPETITION_FACTOR
  (a tenth) for each time that they came before: greedy text shall not fall into a loop. (After the
  repetition penalty in training of Xu et al. 2022, 2206.02369, and Welleck et al. 2019,
  1908.04319. Books' text that was made to repeat itself taught this model nothing about its own
  loops; losses that only say what shall not come drove it to odd words instead.)
* Matrix products in bf16, all else in f32. Step n draws its batch from the seed, n, and the greedy
  text, which a checkpoint keeps: a resumed run equals an unbroken one.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:  # torch is imported by the functions that use it: `score` works without it
    from tokenizers import Tokenizer
    from torch import Tensor

END = "<|endoftext|>"
BLOCK = 1024  # tokens; the longest window
CHUNK = 1024  # rows of logits at a time: f32 [1024, 4096] stays in the cache of a CPU
SAVE_EVERY = 100  # steps
REPETITION_FACTOR = 0.1  # of a token's probability, for each time that its 5-gram came before
TILE = 128  # queries that read the same keys in `attention`
OPENINGS = (
    "Once upon a time there was a little girl",
    "The old man said to the fox",
    "One morning the king called his three sons",
    "Far away, in the middle of the forest,",
    "The wind blew and the snow fell",
)
V, NORM_EPS, ROPE_THETA = 4096, 1e-5, 10000.0
NO_TEXT = np.empty((0, BLOCK + 1), np.int64)


@dataclass(frozen=True)
class Plan:
    """What the model looks like and how it is trained; each field is an option of `run`."""

    n_layers: int = 7
    d_model: int = 320
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64  # the fastest in `attention`
    d_ff: int = 832
    tokens: float = 60e6  # length of the run
    batch: int = 8192  # tokens of a step
    muon_rate: float = 6e-3  # peak rate of the matrices, in AdamW's terms
    adam_rate: float = 6e-3  # peak rate of the embedding and the norms
    n_warm_up: int = 60  # steps
    decay_share: float = 0.5  # of the run
    until_256: float = 15e6  # tokens read in windows of 256
    until_512: float = 30e6  # tokens where windows of 1024 begin
    begin_share: float = 0.25  # of the blocks: begin with a document
    repeat_share: float = 0.01  # of the windows: random tokens repeated
    loop_share: float = 0.35  # of the windows during the decay: the model's own greedy text
    seed: int = 0

    @property
    def n_steps(self) -> int:
        return int(self.tokens) // self.batch

    @property
    def decay_begin(self) -> int:
        return round(self.n_steps * (1 - self.decay_share))

    def rate(self, step: int) -> float:
        """Share of the peak rate: `Plan(tokens=1000, batch=1).rate(800)` is 0.5."""
        left = (self.n_steps - step) / max(1, self.n_steps - self.decay_begin)
        return min((step + 1) / self.n_warm_up, 1.0, left)

    def window(self, step: int) -> int:
        seen = step * self.batch
        return 256 if seen < self.until_256 else 512 if seen < self.until_512 else BLOCK

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Every learned tensor, by its name in a checkpoint of LLaMA type."""
        d, d_q, d_kv = self.d_model, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, d)}
        for name in (f"model.layers.{i}.%s.weight" for i in range(self.n_layers)):
            sizes |= {name % f"{norm}_layernorm": (d,) for norm in ("input", "post_attention")}
            for matrix, rows in {"q": d_q, "k": d_kv, "v": d_kv}.items():
                sizes[name % f"self_attn.{matrix}_proj"] = (rows, d)
            sizes[name % "self_attn.o_proj"] = (d, d_q)
            sizes |= {name % f"mlp.{matrix}_proj": (self.d_ff, d) for matrix in ("gate", "up")}
            sizes[name % "mlp.down_proj"] = (d, self.d_ff)
        return sizes | {"model.norm.weight": (d,)}


def documents_in(path: Path) -> list[str]:
    texts = (text.strip() for text in path.read_text(encoding="utf-8-sig").split(END))
    return [text for text in texts if text]


def trained_tokenizer(documents: list[str]) -> Tokenizer:
    """A byte-level BPE that splits digits and puts `<|endoftext|>` (id 0) in front of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B:1", special_tokens=[(END, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=V, special_tokens=[END], initial_alphabet=to_bytes.alphabet()
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


class Stream:
    """The documents' tokens in a new order each epoch, and the batch of any step."""

    def __init__(self, documents: list[np.ndarray], plan: Plan) -> None:
        self.documents, self.plan = documents, plan
        self.n_blocks = (sum(map(len, documents)) - 1) // BLOCK
        self.epoch = -1

    def block(self, index: int) -> np.ndarray:
        """Block `index` of the endless stream, and the token after it: [BLOCK + 1]."""
        epoch, index = divmod(index, self.n_blocks)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.plan.seed, 1, epoch])
            shuffled = rng.permutation(len(self.documents))
            self.ids = np.concatenate([self.documents[i] for i in shuffled])
            self.begins = rng.permutation(self.n_blocks) * BLOCK  # a batch shall hold many stories
            documents = np.cumsum([0, *(len(self.documents[i]) for i in shuffled)])
            documents = documents[documents < len(self.ids) - BLOCK]
            moved = rng.random(self.n_blocks) < self.plan.begin_share
            moved &= self.begins <= documents[-1]
            self.begins[moved] = documents[np.searchsorted(documents, self.begins[moved])]
            self.epoch = epoch
        begin = self.begins[index]
        return self.ids[begin : begin + BLOCK + 1]

    def batch(self, step: int, own: np.ndarray = NO_TEXT) -> tuple[np.ndarray, ...]:
        """Inputs, targets, copies and distances, int64 [windows, window]; `own` of `own_stories`.

        Of the copies, 0 is a target to be learned, -1 one that does not count, and n > 0 the n-th
        copy of what stands a distance before, to be predicted with a damped probability.
        """
        window, n_blocks = self.plan.window(step), self.plan.batch // BLOCK
        blocks = np.stack([self.block(step * n_blocks + i) for i in range(n_blocks)])
        inputs = blocks[:, :-1].reshape(-1, window).astype(np.int64)
        targets = blocks[:, 1:].reshape(-1, window).astype(np.int64)
        copies, distances = np.zeros_like(targets), np.zeros_like(targets)
        rng = np.random.default_rng([self.plan.seed, 2, step])
        drawn = rng.random(len(inputs))
        for row in np.flatnonzero(drawn < self.plan.repeat_share):
            segment = rng.integers(1, V, rng.integers(10, window // 2 + 1))
            repeated = np.resize(segment, window + 1)
            inputs[row], targets[row] = repeated[:-1], repeated[1:]
            copies[row, : len(segment) - 1] = -1  # nobody can guess them the first time
        if not len(own):
            return inputs, targets, copies, distances
        for row in np.flatnonzero(drawn >= 1 - self.plan.loop_share):
            begin = rng.integers(BLOCK // window) * window
            ids = own[rng.integers(len(own)), begin : begin + window + 1]
            inputs[row], targets[row] = ids[:-1], ids[1:]
            copies[row], distances[row] = repetitions(targets[row])
            copies[row, copies[row] == 0] = -1
        return inputs, targets, copies, distances


def repetitions(ids: np.ndarray, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """How often the n-gram that ends at each id has come before, and how far back it came first.

    A story's end (id 0) makes everything new.
    """
    copies, distances = np.zeros_like(ids), np.zeros_like(ids)
    places: dict[tuple[int, ...], list[int]] = {}
    for i in range(n - 1, len(ids)):
        places = {} if ids[i] == 0 else places
        before = places.setdefault(tuple(ids[i - n + 1 : i + 1]), [])
        copies[i], distances[i] = len(before), i - before[0] if before else 0
        before.append(i)
    return copies, distances


def own_stories(
    folder: Path, documents: list[np.ndarray], seed: list[int], n: int = 32
) -> np.ndarray:
    """What the model in `folder` writes greedily after documents' first words: [n, BLOCK + 1].

    Stories of at most 256 tokens, joined.
    """
    import kvgen
    from kvgen.sampling import SamplingOptions

    model, rng, size = kvgen.load(folder), np.random.default_rng(seed), (n, BLOCK + 1)
    ids: list[int] = []
    while len(ids) < math.prod(size):
        opening = documents[rng.integers(len(documents))][: rng.integers(4, 40)].tolist()
        length = 256 - len(opening)
        pieces = model.generate(opening, max_new_tokens=length, sampling=SamplingOptions())
        ids += opening + [piece.token for piece in pieces if piece.token]
    return np.array(ids[: math.prod(size)]).reshape(size)


def initial_tensors(plan: Plan) -> dict[str, Tensor]:
    import torch

    torch.manual_seed(plan.seed)
    tensors = {}
    for name, size in plan.sizes().items():
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))  # to the residual stream
        std = 0.02 / math.sqrt(2 * plan.n_layers) if adds else 0.02
        tensors[name] = torch.ones(size) if len(size) == 1 else torch.randn(size) * std
    return tensors


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """f32 [..., D] -> bf16 [..., D]."""
    return (x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt() * weight).bfloat16()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x [B, T, H, d] by cos, sin [T, 1, d]: dimension i is paired with i + d/2."""
    import torch

    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).bfloat16()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v, bf16 [B, H, T, d].

    On a CPU, compiled: TILE queries at a time against the keys that they may see take half to two
    thirds of the time of torch's own kernel (head_dim 64, T 256 and 1024).
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    T, tiles = q.shape[2], []
    for begin in range(0, T, TILE):
        end = min(begin + TILE, T)
        scores = (q[:, :, begin:end] @ k[:, :, :end].mT).float() * q.shape[-1] ** -0.5
        hidden = torch.arange(begin, end)[:, None] < torch.arange(end)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        tiles.append(weights.bfloat16() @ v[:, :, :end])
    return torch.cat(tiles, 2)


def forward(tensors: dict[str, Tensor], ids: Tensor, plan: Plan) -> Tensor:
    """ids [B, T] -> the normed state after the last layer, bf16 [B, T, D]."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    H, G, d = plan.n_heads, plan.n_kv_heads, plan.head_dim
    frequencies = ROPE_THETA ** -(torch.arange(0, d, 2, device=ids.device) / d)
    angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * frequencies
    cos, sin = (part.repeat(1, 2)[:, None] for part in (angles.cos(), angles.sin()))
    x = F.embedding(ids, tensors["model.embed_tokens.weight"])
    for layer in range(plan.n_layers):

        def product(y: Tensor, *names: str, prefix: str = f"model.layers.{layer}") -> Tensor:
            weight = torch.cat([tensors[f"{prefix}.{name}_proj.weight"] for name in names])
            return F.linear(y, weight.bfloat16())

        y = rms_norm(x, tensors[f"model.layers.{layer}.input_layernorm.weight"])
        qkv = product(y, "self_attn.q", "self_attn.k", "self_attn.v")
        q, k, v = torch.split(qkv.view(*ids.shape, H + 2 * G, d), [H, G, G], 2)
        k, v = (part.repeat_interleave(H // G, 2) for part in (rotated(k, cos, sin), v))
        q, k, v = (part.transpose(1, 2) for part in (rotated(q, cos, sin), k, v))  # [B, H, T, d]
        x = x + product(attention(q, k, v).transpose(1, 2).flatten(2), "self_attn.o")
        y = rms_norm(x, tensors[f"model.layers.{layer}.post_attention_layernorm.weight"])
        gate, up = product(y, "mlp.gate", "mlp.up").chunk(2, -1)
        x = x + product(F.silu(gate) * up, "mlp.down")
    return rms_norm(x, tensors["model.norm.weight"])


def surprise(
    hidden: Tensor, embedding: Tensor, targets: Tensor, copies: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    """The cross-entropy summed over targets [N], given hidden [N, D]; its gradient by the logits.

    The target distribution at an n-th copy is what is predicted where it came first, with the
    probability of the copied token times REPETITION_FACTOR^n, normalized again.
    """
    import torch

    logits = (hidden @ embedding.T).float()
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    p = logprobs.exp()
    hit = (torch.arange(logits.shape[1], device=logits.device) == targets[:, None]).float()
    first = p[torch.arange(len(p), device=p.device) - distances]
    damped = first * (1 - hit * (1 - REPETITION_FACTOR**copies)[:, None])
    goal = torch.where((copies > 0)[:, None], damped / damped.sum(1, keepdim=True), hit)
    counted = (copies >= 0).float()
    d_logits = (p - goal) * counted[:, None]
    return -((goal * logprobs).sum(1) * counted).sum(), d_logits.bfloat16()


def learn(
    tensors: dict[str, Tensor],
    batch: tuple[Tensor, ...],
    compiled: list[Callable[..., Any]],
) -> float:
    """Mean loss of the targets; its gradient is put into the tensors.

    Logits exist a chunk at a time and their gradient is written down, not found by autograd: the
    largest matrices of a step are never kept.
    """
    import torch

    (inputs, targets, copies, distances), (forward, surprise) = batch, compiled
    states, table = forward(tensors, inputs), tensors["model.embed_tokens.weight"]
    hidden, embedding = states.detach().flatten(0, 1), table.detach().bfloat16()
    goals = [goal.flatten() for goal in (targets, copies, distances)]
    nats, n_counted = torch.zeros((), device=table.device), int((copies >= 0).sum())
    d_hidden, d_table = torch.empty_like(hidden), torch.zeros_like(table)
    for chunk in (slice(i, i + CHUNK) for i in range(0, len(hidden), CHUNK)):
        chunk_nats, d_logits = surprise(hidden[chunk], embedding, *(goal[chunk] for goal in goals))
        nats += chunk_nats
        d_hidden[chunk] = d_logits @ embedding
        d_table += d_logits.T @ hidden[chunk]
    states.backward((d_hidden / n_counted).view_as(states))
    assert table.grad is not None  # of the inputs
    table.grad += d_table / n_counted
    return nats.item() / n_counted


class Run:
    """A training as it stands; all of it is in its checkpoints."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        import torch

        self.folder, self.plan, self.step, self.decays = folder, plan, 0, False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.curve: list[dict[str, float]] = []
        self.own = NO_TEXT  # all that the model wrote since its rate falls
        tensors = {name: tensor.to(self.device) for name, tensor in initial_tensors(plan).items()}
        self.tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        matrices = [tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")]
        others = [tensor for name, tensor in tensors.items() if not name.endswith("_proj.weight")]
        # Muon's updates are made as large as AdamW's (Liu et al. 2025, 2502.16982)
        muon = torch.optim.Muon(
            matrices, plan.muon_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(
            others, plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.optimisers = {"muon": (muon, plan.muon_rate), "adam": (adam, plan.adam_rate)}

    def advance(self, batch: tuple[np.ndarray, ...], compiled: list[Callable[..., Any]]) -> float:
        """Make one step; mean nats of its targets."""
        import torch

        on_device = tuple(torch.from_numpy(part).to(self.device) for part in batch)
        nats = learn(self.tensors, on_device, compiled)
        for optimiser, peak in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = peak * self.plan.rate(self.step)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return nats

    def save(self, name: str) -> None:
        """Write the checkpoint FOLDER/run/`name` and the model; a broken write harms neither."""
        import torch

        self.save_model()
        run, new = self.folder / "run", self.folder / "run" / "new"
        tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}
        state = {
            "step": self.step,
            "n_steps": self.plan.n_steps,
            "decays": self.decays,
            "curve": self.curve,
            "own": torch.from_numpy(self.own),
            "tensors": tensors,
            "optimisers": [each.state_dict() for each, _ in self.optimisers.values()],
        }
        torch.save(state, new)
        new.replace(run / name)
        (run / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.curve))

    def save_model(self) -> None:
        from safetensors.torch import save_file

        for file, settings in described(self.plan).items():
            (self.folder / file).write_text(json.dumps(settings, indent=2) + "\n")
        rounded = {name: each.detach().bfloat16().cpu() for name, each in self.tensors.items()}
        new = self.folder / "run" / "new"
        save_file(rounded, new, metadata={"format": "pt"})
        new.replace(self.folder / "model.safetensors")

    def restore(self) -> None:
        """Take up the last checkpoint, or the one before its decay if the length has changed."""
        import torch

        last, stable = self.folder / "run" / "last.pt", self.folder / "run" / "stable.pt"
        if not last.exists():
            return
        state = torch.load(last, map_location=self.device)
        if state["decays"] and state["n_steps"] != self.plan.n_steps:
            state = torch.load(stable, map_location=self.device)
        self.step, self.decays, self.curve = (state[key] for key in ("step", "decays", "curve"))
        self.own = state["own"].cpu().numpy()
        for name, tensor in self.tensors.items():
            tensor.data.copy_(state["tensors"][name])
        for (optimiser, _), kept in zip(self.optimisers.values(), state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)


def described(plan: Plan) -> dict[str, dict[str, Any]]:
    """The JSON files of a Hugging Face folder."""
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": V,
            "max_position_embeddings": BLOCK,
            "hidden_size": plan.d_model,
            "intermediate_size": plan.d_ff,
            "hidden_act": "silu",
            "num_hidden_layers": plan.n_layers,
            "num_attention_heads": plan.n_heads,
            "num_key_value_heads": plan.n_kv_heads,
            "head_dim": plan.head_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "rms_norm_eps": NORM_EPS,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "generation_config.json": {
            "bos_token_id": 0,
            "eos_token_id": 0,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "model_max_length": BLOCK,
            "clean_up_tokenization_spaces": False,
        },
    }


def score_by_transformers(folder: Path | str, ids: list[int], *, window: int) -> np.ndarray:
    """What `Model.score` gives with stride = window, by the reference implementation in f32."""
    import torch
    from transformers import AutoModelForCausalLM

    from kvgen.scoring import Sizes

    model, parts = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    for begin, first, end in Sizes(window, window).windows(len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:end]])).logits[0]
        known = logits.double().log_softmax(-1)
        parts.append(known[range(end - begin), ids[first : end + 1]].numpy())
    return np.concatenate(parts)


def measured(
    folder: Path | str | None,
    documents: list[str],
    *,
    window: int,
    tokens: int | None = None,
    reference: bool = False,
    **dtypes: Any,
) -> tuple[float, float]:
    """Bits per byte and nats per token of the first tokens, by kvgen or by `transformers`.

    The measure of `kvgen score` in windows without overlap, of the documents joined as in training.
    `<|endoftext|>` between two of them counts as one byte.
    """
    import kvgen
    from kvgen.loading import default_model

    model = kvgen.load(folder, **dtypes)
    ids = [token for text in documents for token in model.encode(text)]
    n_bytes = sum(len(text.encode()) + 1 for text in documents) - 1
    bytes_per_token = n_bytes / (len(ids) - 1)  # the first token is not scored
    ids = ids[:tokens]
    if reference:
        known = score_by_transformers(folder or default_model(), ids, window=window)
    else:
        known = model.score(ids, window=window, stride=window)
    per_token = -float(known.mean())
    return per_token / math.log(2) / bytes_per_token, per_token


def plan_options(command: Any) -> Any:
    """Gives a command an option for each field of a plan."""
    for field in reversed(fields(Plan)):
        name, kind = "--" + field.name.replace("_", "-"), type(field.default)
        command = click.option(name, type=kind, default=field.default, show_default=True)(command)
    return command


def repeated_share(tokens: list[int], n: int = 8) -> float:
    """Share of the n-grams that were there before: `repeated_share([1, 2, 1, 2], 2)` is 1/3."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@click.group(help="Train a small model; measure models in bits per byte; see whether they loop.")
def main() -> None:
    """Three commands: `run`, `score` and `loops`."""


@main.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@plan_options
@click.option("--minutes", default=math.inf, help="Save and leave after so many.")
@click.option("--eager", is_flag=True, help="Do not compile: where there is no C++ compiler.")
def run(texts: Path, folder: Path, minutes: float, eager: bool, **chosen: Any) -> None:
    """Train a model in FOLDER on TEXTS, or go on training it."""
    import torch
    from tokenizers import Tokenizer

    began = perf_counter()
    (folder / "run").mkdir(parents=True, exist_ok=True)
    documents, held_out = (documents_in(texts / name) for name in ("train.txt", "valid.txt"))
    path, plan = folder / "tokenizer.json", Plan(**chosen)
    if plan.d_model % plan.n_heads:  # `transformers` asks for it, whatever head_dim says
        raise click.UsageError(f"width {plan.d_model} is no multiple of {plan.n_heads} heads")
    if not path.exists():
        trained_tokenizer(documents).save(str(path))
    encoded = Tokenizer.from_file(str(path)).encode_batch(documents)
    stream = Stream([np.array(each.ids, np.uint16) for each in encoded], plan)
    state = Run(folder, plan)
    state.restore()
    parts: list[Callable[..., Any]] = [partial(forward, plan=plan), surprise]
    if not eager:
        parts = [torch.compile(part, dynamic=False) for part in parts]
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    n_parameters = sum(tensor.numel() for tensor in state.tensors.values())
    n_tokens = sum(map(len, stream.documents))
    click.echo(f"{n_parameters:,} parameters, {n_tokens:,} tokens, on {state.device}")
    noted, losses = perf_counter(), []
    while state.step < plan.n_steps and not stopped and perf_counter() - began < 60 * minutes:
        if state.step >= plan.decay_begin and not state.decays:
            state.save("stable.pt")
            state.decays = True
        window = plan.window(state.step)
        losses.append(state.advance(stream.batch(state.step, state.own), parts))
        if state.step % SAVE_EVERY == 0:
            if state.decays:
                state.save_model()  # it writes the text
                new = own_stories(folder, stream.documents, [plan.seed, 3, state.step])
                state.own = np.concatenate([state.own, new])
            state.save("last.pt")
        if state.step % 20 == 0:
            speed = len(losses) * plan.batch / (perf_counter() - noted)
            row: dict[str, float] = {
                "step": state.step,
                "tokens": state.step * plan.batch,
                "window": window,
                "nats": float(np.mean(losses)),
                "tokens_per_second": speed,
            }
            if state.step % 400 == 0:
                row["bits_per_byte"], _ = measured(folder, held_out, window=window, tokens=65536)
            state.curve.append(row)
            click.echo("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
            noted, losses = perf_counter(), []
    state.save("last.pt")
    click.echo(f"saved after step {state.step} of {plan.n_steps}")
    if state.step == plan.n_steps:
        per_byte, _ = measured(folder, held_out, window=BLOCK)
        click.echo(f"{per_byte:.4f} bits per byte on the whole of valid.txt")


@main.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", required=False)
@click.option("--dtype", default="auto", show_default=True, help="Of the weights, as in kvgen.")
@click.option("--cache-dtype", default="auto", show_default=True, help="Of keys and values.")
@click.option("--window", default=BLOCK, show_default=True, help="Tokens, without overlap.")
@click.option("--transformers", "reference", is_flag=True, help="Run it by `transformers` in f32.")
def score(text: Path, folder: str | None, **options: Any) -> None:
    """Bits per byte and nats per token of TEXT by any model that kvgen runs.

    Of a text of one document this is `kvgen score TEXT --window W --stride W`.
    """
    per_byte, per_token = measured(folder, documents_in(text), **options)
    click.echo(f"{per_byte:.4f} bits/byte, {per_token:.4f} nats/token")


@main.command()
@click.argument("folder", required=False)
@click.option("--tokens", default=200, show_default=True, help="Length of each story.")
def loops(folder: str | None, tokens: int) -> None:
    """Greedy stories from five openings, and the share of their 8-grams that come again."""
    import kvgen
    from kvgen.cli.output import write_text
    from kvgen.sampling import SamplingOptions

    model = kvgen.load(folder)
    for opening in OPENINGS:
        pieces = list(model.generate(opening, max_new_tokens=tokens, sampling=SamplingOptions()))
        write_text(opening + "".join(piece.text for piece in pieces) + "\n")
        repeated = repeated_share([piece.token for piece in pieces])
        click.echo(f"[{len(pieces)} tokens, {repeated:.1%} of the 8-grams repeated]\n")


if __name__ == "__main__":
    main()

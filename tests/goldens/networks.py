"""LlamaGen and DiT, forward only, in float64; weights under the names of released checkpoints."""

from __future__ import annotations

import math

import numpy as np

from tests.goldens.formulas import Array, draws, sigmoid, softmax

Weights = dict[str, Array]
DIM, HEADS, GRID, CLASSES = 16, 2, (3, 2), 3
CODEBOOKS, LAYERS, HEAD_LAYERS, MULTIPLE = (5, 7), 2, 1, 8
CHANNELS = 4


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def angles(width: int) -> Array:
    """Rotation of every pair of a head at every place of the grid, [T, width / 2]."""
    half = width // 2
    rates = 10000.0 ** (-np.arange(0, half, 2)[: half // 2] / half)
    rows, columns = np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1]), indexing="ij")
    return np.concatenate([np.outer(place.ravel(), rates) for place in (rows, columns)], -1)


def rotate(x: Array, turn: Array, zeroed: int) -> Array:
    """Multiply pairs, as complex numbers, by e^(i turn); the first `zeroed` places become 0."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    factors = np.concatenate([np.zeros((zeroed, turn.shape[1])), np.exp(1j * turn)])
    turned = pairs * factors[: x.shape[-2]]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = turned.real, turned.imag
    return out


def attend(q: Array, k: Array, v: Array, causal: bool) -> Array:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:])) > 0, scores, -np.inf)
    return softmax(scores) @ v


def heads_of(x: Array, weight: Array, bias: Array | float = 0.0) -> list[Array]:
    """Queries, keys, values [B, H, S, K]."""
    parts = np.split(x @ weight.T + bias, 3, -1)
    return [part.reshape(*part.shape[:2], HEADS, -1).swapaxes(1, 2) for part in parts]


def llama_block(w: Weights, name: str, x: Array) -> Array:
    h = rms(x, w[f"{name}.attention_norm.weight"], 1e-5)
    q, k, v = heads_of(h, w[f"{name}.attention.wqkv.weight"])
    q, k = (rotate(part, angles(DIM // HEADS), 1) for part in (q, k))
    mixed = attend(q, k, v, causal=True).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ w[f"{name}.attention.wo.weight"].T
    h = rms(x, w[f"{name}.ffn_norm.weight"], 1e-5)
    gate = silu(h @ w[f"{name}.feed_forward.w1.weight"].T)
    hidden = gate * (h @ w[f"{name}.feed_forward.w3.weight"].T)
    return x + hidden @ w[f"{name}.feed_forward.w2.weight"].T


def llamagen(w: Weights, tokens: Array, labels: Array) -> list[Array]:
    """Logits per group; tokens [B, T, G]."""
    tables = [w[f"{group}_emb.weight"] for group in range(len(CODEBOOKS))]
    embedded = sum(table[tokens[..., g]] for g, table in enumerate(tables))
    first = w["cls_embedding.embedding_table.weight"][labels][:, None]
    x = np.concatenate([first, np.asarray(embedded)[:, :-1]], 1)
    for layer in range(LAYERS):
        x = llama_block(w, f"layers.{layer}", x)
    parts = [x, *(tables[g][tokens[..., g]] for g in range(len(CODEBOOKS) - 1))]
    mini = np.stack(parts, 2).reshape(-1, len(CODEBOOKS), DIM)
    for layer in range(HEAD_LAYERS):
        mini = llama_block(w, f"factorized_blocks.{layer}", mini)
    mini = rms(mini, w["norm.weight"], 1e-5).reshape(*x.shape[:2], len(CODEBOOKS), DIM)
    return [mini[:, :, g] @ w[f"output.{g}.weight"].T for g in range(len(CODEBOOKS))]


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def positions() -> Array:
    rates = 10000.0 ** (-np.arange(DIM // 4) / (DIM // 4))
    rows, columns = np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1]), indexing="ij")
    parts = []
    for place in (columns, rows):
        turn = np.outer(place.ravel(), rates)
        parts += [np.sin(turn), np.cos(turn)]
    return np.concatenate(parts, 1)


def dit_block(w: Weights, name: str, x: Array, condition: Array) -> Array:
    parts = linear(w, f"{name}.adaLN_modulation.1", silu(condition))[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(parts, 6, -1)
    h = rms(x, w[f"{name}.norm1.weight"], 1e-6) * (1 + scale1) + shift1
    q, k, v = heads_of(h, w[f"{name}.attn.qkv.weight"], w[f"{name}.attn.qkv.bias"])
    q = rotate(rms(q, w[f"{name}.attn.q_norm.weight"], 1e-6), angles(DIM // HEADS), 0)
    k = rotate(rms(k, w[f"{name}.attn.k_norm.weight"], 1e-6), angles(DIM // HEADS), 0)
    mixed = attend(q, k, v, causal=False).swapaxes(1, 2).reshape(x.shape)
    x = x + gate1 * linear(w, f"{name}.attn.proj", mixed)
    h = rms(x, w[f"{name}.norm2.weight"], 1e-6) * (1 + scale2) + shift2
    gate, value = np.split(linear(w, f"{name}.mlp.w12", h), 2, -1)
    return x + gate2 * linear(w, f"{name}.mlp.w3", silu(gate) * value)


def dit(w: Weights, x: Array, t: Array, labels: Array) -> Array:
    """Prediction [B, C, h, w] with patches of one latent."""
    batch = len(x)
    kernel = w["x_embedder.proj.weight"].reshape(DIM, -1)
    tokens = x.reshape(batch, CHANNELS, -1).swapaxes(1, 2) @ kernel.T
    tokens = tokens + w["x_embedder.proj.bias"] + positions()
    turn = t[:, None] * np.exp(-math.log(10000) * np.arange(128) / 128)
    features = np.concatenate([np.cos(turn), np.sin(turn)], -1)
    condition = linear(w, "t_embedder.mlp.2", silu(linear(w, "t_embedder.mlp.0", features)))
    condition = condition + w["y_embedder.embedding_table.weight"][labels]
    tokens = dit_block(w, "blocks.0", tokens, condition)
    shift, scale = np.split(
        linear(w, "final_layer.adaLN_modulation.1", silu(condition))[:, None], 2, -1
    )
    normed = rms(tokens, w["final_layer.norm_final.weight"], 1e-6) * (1 + scale) + shift
    return linear(w, "final_layer.linear", normed).swapaxes(1, 2).reshape(x.shape)


def _llama_shapes() -> dict[str, tuple[int, ...]]:
    hidden = -(-int(2 * (4 * DIM) / 3) // MULTIPLE) * MULTIPLE
    block = {
        "attention.wqkv.weight": (3 * DIM, DIM),
        "attention.wo.weight": (DIM, DIM),
        "feed_forward.w1.weight": (hidden, DIM),
        "feed_forward.w3.weight": (hidden, DIM),
        "feed_forward.w2.weight": (DIM, hidden),
        "attention_norm.weight": (DIM,),
        "ffn_norm.weight": (DIM,),
    }
    names = [f"layers.{i}" for i in range(LAYERS)]
    names += [f"factorized_blocks.{i}" for i in range(HEAD_LAYERS)]
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{key}": shape for name in names for key, shape in block.items()
    }
    for group, size in enumerate(CODEBOOKS):
        shapes |= {f"{group}_emb.weight": (size, DIM), f"output.{group}.weight": (size, DIM)}
    return shapes | {
        "cls_embedding.embedding_table.weight": (CLASSES + 1, DIM),
        "norm.weight": (DIM,),
    }


def _dit_shapes() -> dict[str, tuple[int, ...]]:
    hidden = int(2 / 3 * 4 * DIM)
    head = DIM // HEADS
    weights = {
        "x_embedder.proj": (DIM, CHANNELS, 1, 1),
        "t_embedder.mlp.0": (DIM, 256),
        "t_embedder.mlp.2": (DIM, DIM),
        "blocks.0.attn.qkv": (3 * DIM, DIM),
        "blocks.0.attn.proj": (DIM, DIM),
        "blocks.0.mlp.w12": (2 * hidden, DIM),
        "blocks.0.mlp.w3": (DIM, hidden),
        "blocks.0.adaLN_modulation.1": (6 * DIM, DIM),
        "final_layer.linear": (CHANNELS, DIM),
        "final_layer.adaLN_modulation.1": (2 * DIM, DIM),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": shape for n, shape in weights.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    shapes |= {f"blocks.0.attn.{n}_norm.weight": (head,) for n in "qk"}
    norms = ("blocks.0.norm1", "blocks.0.norm2", "final_layer.norm_final")
    shapes |= {f"{name}.weight": (DIM,) for name in norms}
    return shapes | {"y_embedder.embedding_table.weight": (CLASSES + 1, DIM)}


def _weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """N(0, 0.3) everywhere, norms around 1; nothing is zero, as it would be before training."""
    normal = draws(seed)
    found = {}
    for name in sorted(shapes):
        values = normal(*shapes[name]) * np.float32(0.3)
        found[name] = values + np.float32(1.0) if "norm" in name else values
    return found


def derive() -> dict[str, Array]:
    """Weights, inputs and outputs of both networks."""
    rng = np.random.default_rng(7)
    found: dict[str, Array] = {}
    num_tokens = GRID[0] * GRID[1]
    own = _weights(_llama_shapes(), 5)
    tokens = np.stack([rng.integers(0, size, (2, num_tokens)) for size in CODEBOOKS], -1)
    labels = np.array([1, CLASSES])
    found |= {f"llamagen.weight.{name}": value for name, value in own.items()}
    found |= {"llamagen.tokens": tokens, "llamagen.labels": labels}
    wide = {name: value.astype(np.float64) for name, value in own.items()}
    for group, logits in enumerate(llamagen(wide, tokens, labels)):
        found[f"llamagen.logits{group}"] = logits
    own = _weights(_dit_shapes(), 6)
    x, t = draws(8)(2, CHANNELS, *GRID), np.array([0.25, 0.75])
    found |= {f"dit.weight.{name}": value for name, value in own.items()}
    found |= {"dit.x": x, "dit.t": t, "dit.labels": labels}
    wide = {name: value.astype(np.float64) for name, value in own.items()}
    found["dit.prediction"] = dit(wide, x.astype(np.float64), t, labels)
    return found

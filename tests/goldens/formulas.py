"""Quantizers, losses, filters and distances as their publications write them, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def draws(seed: int) -> Callable[..., Array]:
    """Standard normal numbers, rounded to float32 so that every precision reads the same ones."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def fsq(levels: list[int], alpha: float, z: Array, w: Array) -> dict[str, Array]:
    """Codes, digits, index (little endian) and straight-through gradient; z [B, C, H, W]."""
    count = np.array(levels, dtype=np.float64).reshape(1, -1, 1, 1)
    half = (count - 1) / 2
    s = sigmoid(alpha * z.astype(np.float64))
    digits = np.rint((2 * s - 1) * half) + half
    index = np.zeros(z[:, 0].shape)
    for channel in reversed(range(len(levels))):
        index = index * levels[channel] + digits[:, channel]
    return {
        "codes": (digits - half) / half,
        "index": index.astype(np.int64),
        "gradient": w * 2 * alpha * s * (1 - s),
    }


def vq(z: Array, codebook: Array, beta: float) -> dict[str, Array]:
    """Nearest entry and the loss with beta on the commitment term; rows [N, C]."""
    z, codebook = z.astype(np.float64), codebook.astype(np.float64)
    index = ((z[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
    error = ((z - codebook[index]) ** 2).mean()
    return {"index": index, "loss": np.array((1 + beta) * error)}


def lfq_entropies(x: Array, temperature: float) -> tuple[float, float]:
    """Mean entropy of assignments, entropy of the mean assignment; rows [N, bits], nats."""
    bits = x.shape[1]
    codes = ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1) * 2.0 - 1.0
    shares = softmax(2 * x.astype(np.float64) @ codes.T / temperature)
    mean = shares.mean(0)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(-(shares * logs).sum(-1).mean()), float(-(mean * np.log(mean + 1e-5)).sum())


def derivative(value: Callable[[Array], float], x: Array, step: float = 1e-6) -> Array:
    """Central differences."""
    x, found = x.astype(np.float64), np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        move = np.zeros(x.shape)
        move[at] = step
        found[at] = (value(x + move) - value(x - move)) / (2 * step)
    return found


def filtered(logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Softmax of the largest k, then of the smallest head whose mass reaches p."""
    scaled = logits.astype(np.float64) / temperature
    if top_k:
        scaled = np.where(scaled < np.sort(scaled)[-top_k], -np.inf, scaled)
    order = np.argsort(-scaled, kind="stable")
    shares = softmax(scaled)[order]
    before = np.cumsum(shares) - shares
    scaled[order[before >= top_p]] = -np.inf
    return softmax(scaled)


def cosine(x: Array, y: Array, axis: int) -> Array:
    lengths = np.sqrt((x * x).sum(axis)) * np.sqrt((y * y).sum(axis))
    return (x * y).sum(axis) / lengths


def frechet(a: Array, b: Array) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of rows."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(c1)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * overlap)


def _quantizers() -> dict[str, Array]:
    found: dict[str, Array] = {}
    normal = draws(1)
    for name, levels, alpha in (
        ("fsq", [17] * 4, 2.0),
        ("ifsq", [17] * 4, 1.6),
        ("mixed", [5, 3, 9], 1.6),
    ):
        z, w = 1.5 * normal(2, len(levels), 4, 4), normal(2, len(levels), 4, 4)
        found |= {f"{name}.z": z, f"{name}.w": w}
        found |= {f"{name}.{key}": value for key, value in fsq(levels, alpha, z, w).items()}
    z, codebook = normal(48, 3), normal(19, 3)
    found |= {"vq.z": z, "vq.codebook": codebook}
    found |= {f"vq.{key}": value for key, value in vq(z, codebook, 0.25).items()}
    x = (0.02 * normal(12, 5)).astype(np.float32)
    sample, mean = lfq_entropies(x, 0.01)
    found |= {"lfq.x": x, "lfq.sample_entropy": np.array(sample), "lfq.mean": np.array(mean)}

    def loss(rows: Array) -> float:
        own, average = lfq_entropies(rows, 0.01)
        return own - average + 0.25 * float(((rows - np.where(rows > 0, 1, -1)) ** 2).mean())

    found["lfq.gradient"] = derivative(loss, x)
    return found


def _losses() -> dict[str, Array]:
    normal = draws(2)
    real, fake = normal(3, 1, 5, 5), normal(3, 1, 5, 5)
    logits, tokens = normal(2, 6, 11), np.arange(12).reshape(2, 6) * 5 % 11
    wide = logits.astype(np.float64)
    logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    mine, theirs = normal(2, 7, 8), normal(2, 7, 8)
    data, noise, t = normal(3, 4, 2, 2), normal(3, 4, 2, 2), np.array([0.1, 0.5, 0.9])
    x_t = t.reshape(-1, 1, 1, 1) * data + (1 - t.reshape(-1, 1, 1, 1)) * noise
    r, f = real.astype(np.float64), fake.astype(np.float64)
    softplus = np.logaddexp
    guess = normal(3, 4, 2, 2)
    velocity = data.astype(np.float64) - noise
    return {
        "gan.real": real,
        "gan.fake": fake,
        "gan.hinge": 0.5 * (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()),
        "gan.vanilla": 0.5 * (softplus(0, -r).mean() + softplus(0, f).mean()),
        "gan.generator": -f.mean(),
        "ce.logits": logits,
        "ce.tokens": tokens,
        "ce.loss": -np.take_along_axis(logs, tokens[..., None], -1).mean(),
        "repa.mine": mine,
        "repa.theirs": theirs,
        "repa.loss": -cosine(mine.astype(np.float64), theirs.astype(np.float64), -1).mean(),
        "flow.data": data,
        "flow.noise": noise,
        "flow.t": t,
        "flow.x": x_t,
        "flow.velocity": velocity,
        "flow.guess": guess,
        "flow.error": ((guess - velocity) ** 2).mean((1, 2, 3)),
        "flow.direction": 1 - cosine(guess.astype(np.float64), velocity, 1).mean((1, 2)),
    }


def _sampling() -> dict[str, Array]:
    normal = draws(3)
    logits, without = 2 * normal(4, 23), 2 * normal(4, 23)
    guided = without.astype(np.float64) + 1.75 * (logits.astype(np.float64) - without)
    cases = {"plain": (1.0, 0, 1.0), "hot": (1.7, 0, 1.0), "k": (1.0, 5, 1.0), "p": (0.9, 9, 0.6)}
    found = {"draw.with": logits, "draw.without": without, "draw.guided": guided}
    for name, (temperature, top_k, top_p) in cases.items():
        rows = [filtered(row, temperature, top_k, top_p) for row in logits]
        found[f"draw.{name}"] = np.stack(rows)
    return found


def _evaluation() -> dict[str, Array]:
    normal = draws(4)
    a, b = normal(90, 6), (1.3 * normal(70, 6) + 0.4).astype(np.float32)
    shares = softmax(2 * normal(40, 9).astype(np.float64))
    mean = shares.mean(0, keepdims=True)
    score = np.exp((shares * np.log(shares / mean)).sum(1).mean())
    return {
        "fid.a": a,
        "fid.b": b,
        "fid.value": np.array(frechet(a.astype(np.float64), b.astype(np.float64))),
        "is.shares": shares,
        "is.value": np.array(score),
    }


def derive() -> dict[str, Array]:
    """Everything here."""
    parts = {**_quantizers(), **_losses(), **_sampling(), **_evaluation()}
    return {name: np.asarray(value) for name, value in parts.items()}

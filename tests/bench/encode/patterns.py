"""Makes attention patterns to measure encoders on: FOLDER/{kind}-{n}.npz, uncompressed, as a run names its arrays, in the
number type given behind FOLDER (float32 without one).

Kinds:
  gpt2    GPT-2 small's first layers with spread-out random weights on random embeddings
  mixed   twelve heads from nearly uniform to nearly one-hot: random scores at twelve sharpnesses
  sink    the same with most weight on the first token, as trained models often have it
  local   attention in a window of a quarter of the prompt
  sharp   twelve heads from sharp to nearly one-hot: most weights are tiny, or exactly zero
  bloom   random scores and linear position biases (ALiBi) at twelve slopes, as BLOOM's
and, of data that repeat, as no softmax of distinct scores does:
  half    softmax output rounded to half precision
  onehot  every query attends to one key alone
  equal   twelve heads of uniform attention
  blend   of each of these two heads, and six of softmax output
  alibi   linear position biases alone, at twelve slopes: all tokens are equal
  alike   every query scores the keys alike
  zeros   nothing at all
"""

import pathlib
import sys

import numpy as np

N_HEADS, D_HEAD, D_MODEL = 12, 64, 768
LENGTHS = (64, 128, 296, 512, 1024)
REPEATING = ("half", "onehot", "equal", "blend", "alibi", "alike", "zeros")
REPEATING_LENGTHS = (64, 296, 1024)


def softmax(scores: np.ndarray, window: int | None = None) -> np.ndarray:
    """Causal, over the last axis."""
    n = scores.shape[-1]
    query, key = np.ogrid[:n, :n]
    hidden = key > query if window is None else (key > query) | (key <= query - window)
    scores = np.where(hidden, np.float32(-np.inf), scores.astype(np.float32))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True, dtype=np.float32)


def gpt2(n: int, random: np.random.Generator, layers: int) -> list[np.ndarray]:
    def weight(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def norm(x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        gain = 1 + 0.1 * random.standard_normal(D_MODEL)
        return (x * gain + 0.05 * random.standard_normal(D_MODEL)).astype(np.float32)

    def heads(x: np.ndarray) -> np.ndarray:
        # Six times GPT-2's initial scale: attention is then as uneven as a trained model's.
        x = x @ weight(D_MODEL, D_MODEL, 0.12) + 0.05 * random.standard_normal(D_MODEL)
        return x.astype(np.float32).reshape(n, N_HEADS, D_HEAD).transpose(1, 0, 2)

    x, patterns = weight(n, D_MODEL, 0.03), []
    for _ in range(layers):
        normed = norm(x)
        q, k, v = heads(normed), heads(normed), heads(normed)
        pattern = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(D_HEAD))
        patterns.append(pattern)
        x = x + (pattern @ v).transpose(1, 0, 2).reshape(n, D_MODEL) @ weight(D_MODEL, D_MODEL, 0.004)
        hidden = norm(x) @ weight(D_MODEL, 4 * D_MODEL, 0.02)
        hidden *= 0.5 * (1 + np.tanh(0.79788 * (hidden + 0.044715 * hidden**3)))
        x = x + hidden @ weight(4 * D_MODEL, D_MODEL, 0.004)
    return patterns


def scores(n: int, random: np.random.Generator, sharpness: np.ndarray) -> np.ndarray:
    q, k = (random.standard_normal((N_HEADS, n, D_HEAD), dtype=np.float32) for _ in range(2))
    return q @ k.transpose(0, 2, 1) / np.sqrt(D_HEAD) * sharpness[:, None, None]


def main(folder: pathlib.Path, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in LENGTHS:
        random = np.random.default_rng(n)
        sink = scores(n, random, 2 ** np.linspace(-1, 3, N_HEADS))
        sink[:, :, 0] += np.linspace(3, 14, N_HEADS)[:, None]
        kinds = {
            "gpt2": gpt2(n, random, layers=2 if n < 1024 else 1),
            "mixed": [softmax(scores(n, random, 2 ** np.linspace(-2, 5, N_HEADS)))],
            "sink": [softmax(sink)],
            "local": [softmax(scores(n, random, np.full(N_HEADS, 1.5)), window=n // 4)],
            "sharp": [softmax(scores(n, random, 2 ** np.linspace(5, 9, N_HEADS)))],
        }
        distinct = softmax(scores(n, random, np.full(N_HEADS, 1.5)))
        half = distinct.astype(np.float16).astype(np.float32)
        onehot = softmax(scores(n, random, np.full(N_HEADS, 4000)))
        equal = softmax(np.zeros((N_HEADS, n, n)))
        blend = np.concatenate([distinct[:3], half[:2], onehot[:2], distinct[3:6], equal[:2]])
        query, key = np.ogrid[:n, :n]
        slopes = 2.0 ** (-8 * np.arange(1, N_HEADS + 1) / N_HEADS)
        alibi = softmax(slopes[:, None, None] * (key - query))
        alike = softmax(np.repeat(random.standard_normal((N_HEADS, 1, n)), n, axis=1))
        kinds["bloom"] = [softmax(slopes[:, None, None] * (key - query) + scores(n, random, np.full(N_HEADS, 0.5)))]
        kinds |= {"half": [half], "onehot": [onehot], "equal": [equal], "blend": [blend]}
        kinds |= {"alibi": [alibi], "alike": [alike], "zeros": [np.zeros((N_HEADS, n, n))]}
        for kind, layers in kinds.items():
            if kind in REPEATING and n not in REPEATING_LENGTHS:
                continue
            names = (f"blocks.{layer}.attn.hook_pattern" for layer in range(len(layers)))
            arrays = (layer[None].astype(np.float32).astype(dtype) for layer in layers)
            np.savez(folder / f"{kind}-{n:04}.npz", **dict(zip(names, arrays)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:] or ["float32"])

"""A model of GPT-2 small's size with random weights, and prompts for it, as an offline hub cache: without a network,
and with nothing but Python.

Weights decide no timing, only the patterns' entropy and how far rounding errors carry, so their spread is chosen:
scores a few units apart, as in a trained model, not the even rows of a fresh one. transformers' own float32 is off by
3e-6 on it from its float64. The tokenizer has a token for each byte and no merges: a text of n ASCII characters is n
tokens, one more with BOS.
"""

import array
import json
import pathlib
import random
import struct
import sys

COMMIT = "0" * 39 + "1"
END = "<|endoftext|>"
# Values drawn; tensors take them in turn, from wherever the one before ended. A prime: rows never repeat.
DRAWN = 1_000_003


def config(n_layer: int, vocab: int) -> dict:
    return {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": vocab - 1, "dtype": "float32", "embd_pdrop": 0.1, "eos_token_id": vocab - 1,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_inner": None, "n_layer": n_layer, "n_positions": 1024, "resid_pdrop": 0.1,
        "tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": vocab,
    }  # fmt: skip


def tensors(n_layer: int, vocab: int):
    """Names, shapes, and mean and spread of the values."""
    width = 768
    yield "wte.weight", (vocab, width), 0.0, 0.14
    yield "wpe.weight", (1024, width), 0.0, 0.05
    for i in range(n_layer):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{i}.{norm}.weight", (width,), 1.0, 0.1
            yield f"h.{i}.{norm}.bias", (width,), 0.0, 0.05
        for name, rows, columns, spread in (
            ("attn.c_attn", width, 3 * width, 0.06),
            ("attn.c_proj", width, width, 0.03),
            ("mlp.c_fc", width, 4 * width, 0.04),
            ("mlp.c_proj", 4 * width, width, 0.02),
        ):
            yield f"h.{i}.{name}.weight", (rows, columns), 0.0, spread
            yield f"h.{i}.{name}.bias", (columns,), 0.0, 0.05
    yield "ln_f.weight", (width,), 1.0, 0.1
    yield "ln_f.bias", (width,), 0.0, 0.05


def write_weights(path: pathlib.Path, n_layer: int, vocab: int) -> None:
    """model.safetensors: the length of a JSON header, the header, the tensors."""
    assert sys.byteorder == "little", "safetensors are little-endian"
    draw = random.Random(0).gauss
    drawn = array.array("f", (draw(0.0, 1.0) for _ in range(DRAWN)))
    header: dict = {"__metadata__": {"format": "pt"}}
    plan, end = [], 0
    for name, shape, mean, spread in tensors(n_layer, vocab):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        begin, end = end, end + 4 * count
        header[f"transformer.{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        plan.append((count, mean, spread))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    spreads: dict = {}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        at = 0
        for count, mean, spread in plan:
            if (mean, spread) not in spreads:
                spreads[mean, spread] = memoryview(array.array("f", (mean + spread * value for value in drawn)))
            values = spreads[mean, spread]
            while count > 0:
                taken = min(count, DRAWN - at)
                file.write(values[at : at + taken])
                count, at = count - taken, (at + taken) % DRAWN


def byte_symbols() -> list:
    """The characters that byte-level BPE writes for the bytes 0 to 255: printable ones stand for themselves, the others
    for what follows 255, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_tokenizer(folder: pathlib.Path, vocab: int) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    ids = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    added = {"id": vocab - 1, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added], "normalizer": None,
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {**ids, END: vocab - 1}, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {"bos_token": END, "eos_token": END, "unk_token": END, "model_max_length": 1024,
               "tokenizer_class": "GPT2TokenizerFast"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def write_hub(hub: pathlib.Path, n_layer: int = 12, vocab: int = 50257) -> pathlib.Path:
    """Lays the model out as the hub's cache does, as `gpt2`; HF_HOME is to be `hub`. Gives its directory."""
    repo = hub / "hub" / "models--gpt2"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config(n_layer, vocab), indent=2))
    write_tokenizer(snapshot, vocab)
    write_weights(snapshot / "model.safetensors", n_layer, vocab)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


def write_prompts(path: pathlib.Path, source: pathlib.Path, n: int, count: int) -> None:
    """`count` different texts of 0.8 n to n tokens, BOS included, cut out of the texts of `source`."""
    lines = source.read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["text"] for line in lines if line.strip())
    text = "".join(c if 32 <= ord(c) < 127 else " " for c in text)
    choose = random.Random(n)
    with path.open("w", encoding="ascii") as file:
        for i in range(count):
            length = choose.randint(n * 4 // 5, n) - 1
            begin = choose.randrange(len(text) - length)
            # A number in front: no two are the same, and nothing is trimmed.
            cut = f"{i} {text[begin : begin + length]}"[: length - 1] + "."
            file.write(json.dumps({"text": cut}) + "\n")

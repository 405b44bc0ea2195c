"""How fast it is: whole runs with their time by stage, and each stage alone."""

import json
import os
import shutil
import time

import machine
from commands import Skipped, TimedOut
from context import Context


class Figures:
    def __init__(self, context: Context):
        self.context, self.report = context, context.report
        # By length and batch.
        self.cases: dict = {}
        self.forward: dict = {}
        # Milliseconds of one layer's patterns to the host: causal halves, whole.
        self.crossing: dict = {}
        # By length.
        self.encode: dict = {}
        self.write_rate = None

    def warm_up(self, n: int, batch: int) -> None:
        """A first run, thrown away: it fills the kernel cache, and its rate says how many prompts to measure with. One
        that takes too long is tried again: kernels are kept one by one."""
        cold, most = True, 90 if self.cases else 150
        try:
            _, model = self.context.worker_run(f"warm-{n}-{batch}", n, batch, 2 * batch, most=most)
        except TimedOut as stopped:
            cold, why = False, f"{stopped}; tried again with the kernels it kept"
            self.report.skip(f"a cold warm-up, n {n}, batch {batch}", why)
            _, model = self.context.worker_run(f"warm-{n}-{batch}-again", n, batch, 2 * batch, most=90)
        seconds = model["seconds"]
        busy = max(1e-3, model["total_seconds"] - seconds["load"] - seconds["warm_up"])
        self.cases[n, batch] = {"cold": seconds["warm_up"] if cold else None, "rate": model["done"] / busy,
                                "a_prompt": model["npz_bytes"] / model["done"]}  # fmt: skip

    def run_case(self, n: int, batch: int) -> None:
        case = self.cases.get((n, batch))
        if case is None:
            raise Skipped("its warm-up did not run: see above")
        scratch, sizes = self.context.scratch, self.context.sizes
        room = min(sizes.bytes, 0.6 * shutil.disk_usage(scratch).free)
        if self.context.in_memory:
            room = min(room, 0.4 * machine.memory_available())
        wanted = min(case["rate"] * sizes.seconds, room / case["a_prompt"], 4096)
        count = max(2, int(wanted / batch)) * batch
        done, model = self.context.worker_run(f"run-{n}-{batch}", n, batch, count)
        seconds, total = model["seconds"], model["total_seconds"]
        steady = max(1e-3, total - seconds["load"] - seconds["warm_up"])
        begin = done.end - steady
        case.update(
            prompts=count, tokens=model["tokens"], wall=done.wall, total=total, steady=steady, peak=done.peak,
            prepare=model["prepare_seconds"], npz=model["npz_bytes"], raw=model["raw_bytes"], **seconds,
        )  # fmt: skip
        if self.context.sampler is not None:
            case["busy"] = self.context.sampler.busy(begin, done.end)
        # One file of each length is kept for the encoder's figures.
        kept = scratch / f"sample-{n}.npz"
        file = max((scratch / "out").glob("gpt2/prompts/*/activations.npz"), key=lambda path: path.stat().st_size)
        shutil.copyfile(file, kept)
        shutil.rmtree(scratch / "out")
        self.show()

    def raw_write(self) -> None:
        """One file, written and synced once, as dd conv=fsync does."""
        block = os.urandom(8 << 20)
        most = max((case.get("npz", 0) for case in self.cases.values()), default=0) or 2e8
        size = min(most, 2e9, 0.3 * shutil.disk_usage(self.context.scratch).free)
        path, written = self.context.scratch / "raw", 0
        begin = time.monotonic()
        with path.open("wb", buffering=0) as file:
            while written < size and time.monotonic() - begin < 20:
                written += file.write(block)
            os.fsync(file.fileno())
        self.write_rate = written / (time.monotonic() - begin)
        path.unlink()
        self.show()

    def encode_alone(self, n: int) -> None:
        sample = self.context.scratch / f"sample-{n}.npz"
        if not sample.exists():
            raise Skipped("no run of this length left a file")
        command = [self.context.args.worker, "bench", "encode", sample, "--json"]
        done = self.context.call(f"encode-{n}", command, most=40).expect()
        self.encode[n] = json.loads(done.out)["mb_per_s_per_core"] * 1e6
        self.show()

    def bench_forward(self, name: str, batch: int, env: dict) -> dict:
        self.context.made()
        command = [self.context.args.worker, "bench", "forward", "-m", "gpt2", "--device", self.context.args.device,
                   "--batch-size", batch, "--n", ",".join(map(str, self.context.sizes.lengths)), "--json"]  # fmt: skip
        done = self.context.call(name, command, env).expect()
        return {length["n"]: length for length in json.loads(done.out)["lengths"]}

    def forward_alone(self, batch: int) -> None:
        for n, length in self.bench_forward(f"forward-{batch}", batch, {}).items():
            self.forward[n, batch] = length["prompts_per_s"]
            times = [length[f"{what}_to_host_seconds"] for what in ("halves", "squares")]
            if None not in times:
                self.crossing[n, batch] = [1e3 * seconds for seconds in times]
        self.show()

    # ---- the table ----

    def show(self) -> None:
        order = [(n, batch) for n in self.context.sizes.lengths for batch in self.context.sizes.batches]
        cores = machine.cores()

        def row(label: str, value, form: str = ".2f") -> list:
            cells = []
            for n, batch in order:
                try:
                    found = value(n, batch, self.cases.get((n, batch), {}))
                except (KeyError, TypeError, ZeroDivisionError):  # a figure it is made of was left out
                    found = None
                cells.append("-" if found is None else found if isinstance(found, str) else format(found, form))
            return [label, *cells]

        def alone(n: int, batch: int, case: dict) -> dict:
            return {
                "forward": case["prompts"] / self.forward[n, batch],
                "encode": case["raw"] / (self.encode[n] * cores),
                "write": case["npz"] / self.write_rate,
            }

        def slowest(n: int, batch: int, case: dict) -> tuple:
            return max(((seconds, name) for name, seconds in alone(n, batch, case).items()))

        stages = [
            row(f"… {name}, s", lambda n, b, c, key=key: c[key])
            for name, key in (
                ("load", "load"), ("warm-up, kernels cached", "warm_up"), ("forward, readback included", "forward"),
                ("waiting for encoders or disk", "wait"), (f"encode, summed over {cores} cores", "encode"),
                ("commit, summed over threads", "commit"),
            )
        ]  # fmt: skip
        rows = [
            row("warm-up of a first run, cold, s", lambda n, b, c: c["cold"]),
            row("prompts (0.8 n to n tokens)", lambda n, b, c: c["prompts"], "d"),
            row("whole process, s", lambda n, b, c: c["wall"]),
            row("worker run, s", lambda n, b, c: c["total"]),
            *stages,
            row("**prompts/s**, whole run", lambda n, b, c: c["prompts"] / c["total"], ".1f"),
            row("**prompts/s**, without load and warm-up", lambda n, b, c: c["prompts"] / c["steady"], ".1f"),
            row("npz written, MB/s, without load and warm-up", lambda n, b, c: c["npz"] / c["steady"] / 1e6, ".0f"),
            row("npz written, MB", lambda n, b, c: c["npz"] / 1e6, ".0f"),
            row("peak host memory, MB", lambda n, b, c: c["peak"] / 1e6, ".0f"),
            row("card computes, share of that time (samples)", lambda n, b, c: "{:.0%} ({})".format(*c["busy"])),
            row("forward alone, the same prompts, s", lambda n, b, c: alone(n, b, c)["forward"]),
            row("one layer of a batch to the host: causal halves, ms", lambda n, b, c: self.crossing[n, b][0]),
            row("… the whole squares, ms", lambda n, b, c: self.crossing[n, b][1]),
            row(f"encode alone on {cores} cores, s", lambda n, b, c: c["raw"] / (self.encode[n] * cores)),
            row("raw write of the same bytes, s", lambda n, b, c: c["npz"] / self.write_rate),
            row("**times the slowest of the three** (target 1.5)",
                lambda n, b, c: "{:.2f} ({})".format(c["steady"] / slowest(n, b, c)[0], slowest(n, b, c)[1])),
            row("pattern_lens, prompts/s without load", lambda n, b, c: c["upstream"], ".2f"),
            row("**times pattern_lens** (target 40)",
                lambda n, b, c: c["prompts"] / c["steady"] / c["upstream"], ".1f"),
            row("eager loop, nothing written, prompts/s", lambda n, b, c: c["eager"], ".1f"),
            row("times the eager loop", lambda n, b, c: c["prompts"] / c["steady"] / c["eager"], ".1f"),
        ]  # fmt: skip
        rows = [cells for cells in rows if any(cell != "-" for cell in cells[1:])]
        if rows:
            self.report.table("figures", ["", *(f"n {n}, batch {batch}" for n, batch in order)], rows)
        self.report.data["cases"] = {f"{n}x{batch}": case for (n, batch), case in self.cases.items()}
        self.report.data["to_host_ms"] = {f"{n}x{batch}": times for (n, batch), times in self.crossing.items()}
        self.report.data["forward_prompts_per_s"] = {f"{n}x{batch}": rate for (n, batch), rate in self.forward.items()}
        self.report.data["encode_bytes_per_s_per_core"] = self.encode
        self.report.data["write_bytes_per_s"] = self.write_rate

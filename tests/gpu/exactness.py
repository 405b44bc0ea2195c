"""The full-size model's patterns beside each other: the device's and the CPU's, float32's and the rougher ones'."""

import pathlib

import patterns
from commands import Failed, Skipped
from context import Context
from figures import Figures

# Largest difference allowed between devices on the full-size model, float32.
TOLERANCE = 1e-4
# Prompts of the runs whose patterns are compared with each other.
COMPARED = 8


class Exactness:
    def __init__(self, context: Context, figures: Figures):
        self.context, self.report, self.figures = context, context.report, figures
        # The device's own run in float32, once there is one.
        self.float32 = None

    def compared(self, name: str, device=None, env=None) -> pathlib.Path:
        """The directory of a run over the prompts that are compared."""
        save = self.context.scratch / f"compared-{name}"
        n, batch = self.context.sizes.lengths[0], self.context.sizes.batches[0]
        self.context.worker_run(f"compared-{name}", n, batch, COMPARED, device, save, env)
        return save

    def base(self) -> pathlib.Path:
        if self.float32 is None:
            self.float32 = self.compared("float32")
        return self.float32

    def beside_cpu(self) -> None:
        base = self.base()
        if not self.context.gpu:
            raise Skipped("the device is the CPU")
        count, worst = patterns.largest_difference(base, self.compared("cpu", "cpu"))
        what = f"GPT-2 small's size on {self.context.args.device} beside cpu, float32"
        said = f"{count} prompts, largest difference {worst:.1e}, allowed {TOLERANCE:.0e}"
        self.report.check(what, worst <= TOLERANCE, said)

    def precision(self, name: str) -> None:
        if not self.context.gpu and name == "tf32":
            raise Skipped("the CPU has no TF32")
        setting = "MATMUL_PRECISION" if name == "tf32" else "COMPUTE_DTYPE"
        env = {f"LENSPOOL_RUN_{setting}": name}
        count, worst = patterns.largest_difference(self.base(), self.compared(name, env=env))
        if worst == 0.0:
            raise Failed("the patterns are float32's to the last bit: it was not in force")
        row = [name, f"{worst:.1e} ({count} prompts)"]
        batch = self.context.sizes.batches[-1]
        try:
            lengths = self.figures.bench_forward(f"forward-{name}", batch, env)
        except Failed as failed:
            self.report.skip(f"forward alone in {name}", f"failed: {failed}")
            lengths = {}
        for n in self.context.sizes.lengths:
            length, plain = lengths.get(n), self.figures.forward.get((n, batch))
            row.append(f"{length['prompts_per_s']:.1f}" if length else "-")
            row.append(f"{length['prompts_per_s'] / plain:.2f}" if length and plain else "-")
        head = ["forward alone", "largest difference from float32"]
        for n in self.context.sizes.lengths:
            head += [f"n {n}, batch {batch}: prompts/s", "x float32"]
        self.report.row("precision", head, row)

"""What is compared with: pattern_lens and a plain transformers loop, where Python has them."""

import json
import shutil

import patterns
from commands import Skipped
from context import REPO, Context
from exactness import Exactness
from figures import Figures


class Peers:
    def __init__(self, context: Context, figures: Figures, exactness: Exactness):
        self.context, self.report, self.figures, self.exactness = context, context.report, figures, exactness
        # What Python has, once that is known.
        self.python = None
        # Seconds that pattern_lens took, by length.
        self.seen: dict = {}

    def find(self) -> None:
        """Which of the programs to compare with there are."""
        code = (
            "import json, importlib.metadata as m\nfound = {}\n"
            "for name in ('torch', 'transformers', 'transformer_lens', 'pattern_lens', 'numpy'):\n"
            "    try:\n        __import__(name); found[name] = m.version(name)\n"
            "    except BaseException as error: found[name] = None\n"
            "try:\n    import torch; found['cuda'] = torch.cuda.is_available()\n"
            "except BaseException: found['cuda'] = False\n"
            "print(); print(json.dumps(found))"
        )
        done = self.context.call("python", [self.context.args.python, "-c", code]).expect()
        self.python = json.loads(done.out.strip().splitlines()[-1])
        names = ", ".join(f"{name} {found or 'missing'}" for name, found in self.python.items() if name != "cuda")
        self.report.lines.append(f"Python has {names}" + ("; torch sees the card" if self.python["cuda"] else ""))

    def torch_device(self, *names: str) -> str:
        """What torch calls the device, where there are torch and all of `names`."""
        found = self.python
        if found is None:
            raise Skipped("it is not known what Python has: see above")
        missing = [name for name in names if not found[name]]
        if missing:
            raise Skipped(f"Python has no {', '.join(missing)}")
        gpu, device = self.context.gpu, self.context.args.device
        if gpu and not found["cuda"]:
            raise Skipped("torch sees no card")
        return device if device.startswith("cuda") else "cuda" if gpu else "cpu"

    def upstream(self, n: int, batch: int) -> None:
        device = self.torch_device("torch", "transformers", "transformer_lens", "pattern_lens")
        self.context.made()
        count = max(self.context.sizes.slow_prompts[n], batch)
        seen = self.seen.get(n)
        if seen:
            needed = seen["overhead"] + count * seen["a_prompt"]
            if needed > self.context.left():
                raise Skipped(f"it would take {needed:.0f} s, and {self.context.left():.0f} s are left")
        out = self.context.scratch / "upstream"
        shutil.rmtree(out, ignore_errors=True)
        command = [self.context.args.python, REPO / "tests" / "bench" / "compare.py", "upstream",
                   self.context.prompts(n), out, "--n", count, "--min-chars", 1, "--max-chars", 100000,
                   "--batch-size", batch, "--device", device]  # fmt: skip
        done = self.context.call(f"upstream-{n}-{batch}", command, most=150).expect()
        told = json.loads(done.out.strip().splitlines()[-1])
        steady = told["total"] - told["load"]
        self.seen[n] = {"overhead": done.wall - steady, "a_prompt": steady / count}
        case = self.figures.cases.setdefault((n, batch), {})
        case.update(upstream=count / steady, upstream_prompts=count, upstream_seconds=told)
        if n == self.context.sizes.lengths[0] and self.exactness.float32 is not None:
            common, worst = patterns.largest_difference(self.exactness.float32, out)
            said = f"{common} prompts, largest difference {worst:.1e}"
            self.report.lines.append(f"patterns beside pattern_lens, n {n}, batch {batch}: {said}")
        shutil.rmtree(out, ignore_errors=True)
        self.figures.show()

    def eager(self, n: int, batch: int) -> None:
        device = self.torch_device("torch", "transformers")
        self.context.made()
        count = 4 * batch
        command = [self.context.args.python, REPO / "tests" / "gpu" / "eager.py", self.context.checkpoint,
                   self.context.prompts(n), "--batch-size", batch, "--n", count, "--device", device]  # fmt: skip
        done = self.context.call(f"eager-{n}-{batch}", command).expect()
        told = json.loads(done.out.strip().splitlines()[-1])
        self.figures.cases.setdefault((n, batch), {})["eager"] = told["prompts"] / told["loop"]
        self.figures.show()

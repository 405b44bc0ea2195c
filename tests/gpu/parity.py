"""Parity with the goldens, and the unit tests, from test binaries built elsewhere."""

import json
import os
import pathlib
import re

from commands import Done, Skipped
from context import REPO, Context


class Parity:
    def __init__(self, context: Context):
        self.context, self.report = context, context.report

    def test(self, name: str, binary: pathlib.Path, device: str, arguments: list, most: float) -> Done:
        """A test binary's end. Its kernels are kept apart from the worker's, whose warm-up is to be a cold one."""
        folder = self.context.scratch / "tests"
        folder.mkdir(exist_ok=True)
        where = json.dumps(str(folder / "kernels"))
        config = f"[environment]\npath = {{ directory = {where} }}\n[compilation]\ncache = true\n"
        (folder / "cubecl.toml").write_text(config)
        env = {"LENSPOOL_TEST_DEVICE": device, "LENSPOOL_TEST_FIXTURES": str(REPO / "tests" / "fixtures"),
               "CUDA_CACHE_PATH": str(folder / "driver")}  # fmt: skip
        return self.context.call(name, [binary, *arguments, "--nocapture"], env, most, folder)

    def find_binary(self, pattern: str, given: "pathlib.Path | None", test: str) -> pathlib.Path:
        """The newest test binary of that name beside the worker that has such a test."""
        if given is not None:
            if not given.is_file():
                raise Skipped(f"there is no {given}")
            return given
        deps = self.context.args.worker.parent / "deps"
        found = [path for path in deps.glob(pattern) if path.is_file() and os.access(path, os.X_OK) and not path.suffix]
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            listed = self.context.call("list", [path, "--list"], most=20)
            if listed.code == 0 and test in listed.out:
                return path
        raise Skipped(f"no {pattern} with a test {test} in {deps}: build it (see --help) or give its path")

    def on(self, device: str, most: float) -> None:
        what = f"parity on {device}: every fixture against its float64 golden"
        binary = self.find_binary("parity-*", self.context.args.parity, "every_fixture_equals_its_golden")
        done = self.test(f"parity-{device.replace(':', '-')}", binary, device, [], most)
        lines = re.findall(r"([\w.-]+) +(\d\.?\d*e-?\d+)$", done.out, re.MULTILINE)
        offs = {name: float(off) for name, off in lines}
        worst = max(offs.items(), key=lambda item: item[1]) if offs else None
        said = f"{len(offs)} fixtures" + (f", largest difference {worst[1]:.1e} ({worst[0]})" if worst else "")
        if done.code == 0 and offs:
            self.report.check(what, True, f"{said}, in {done.wall:.0f} s")
        elif done.timed_out:
            self.report.check(what, None, f"not finished in {done.limit:.0f} s: {said} so far")
        else:
            failed = re.findall(r"^(?!note: )([\w.-]+: .+)$", done.err, re.MULTILINE)
            self.report.check(what, False, f"{said} equal; not equal: {'; '.join(failed[:6]) or done.why()}")

    def unit(self) -> None:
        what = f"unit tests model:: on {self.context.args.device}"
        binary = self.find_binary("worker-*", self.context.args.unit, "model::tests::")
        # Parity compiles these kernels, too. One at a time: several engines on one card would only wait for each other.
        threads = ["--test-threads=1"] if self.context.gpu else []
        done = self.test("unit", binary, self.context.args.device, ["model::", "--skip", "compiled::", *threads], 90)
        counts = re.search(r"test result: .*?(\d+) passed; (\d+) failed", done.out)
        if done.code == 0 and counts and int(counts.group(1)) > 0:
            self.report.check(what, True, f"{counts.group(1)} passed, in {done.wall:.0f} s")
        elif done.timed_out:
            passed = len(re.findall(r"^(?:test .* \.\.\. .*)?ok$", done.out, re.MULTILINE))
            self.report.check(what, None, f"not finished in {done.limit:.0f} s: {passed} passed so far")
        else:
            names = sorted(set(re.findall(r"^    (model::[\w:]+)$", done.out, re.MULTILINE)))
            self.report.check(what, False, f"failed: {', '.join(names) or done.why()}")

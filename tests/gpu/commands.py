"""Running commands within a time budget: each in a process group of its own, killed when its time is up, its output
kept."""

import os
import pathlib
import signal
import subprocess
import time


class Failed(Exception):
    """A command ended badly; the text says how."""


class TimedOut(Failed):
    """It had to be stopped."""


class Skipped(Exception):
    """Something is missing; the text says what."""


class Budget:
    def __init__(self, seconds: float):
        self.begin = time.monotonic()
        self.seconds = seconds

    def spent(self) -> float:
        return time.monotonic() - self.begin

    def left(self) -> float:
        return self.seconds - self.spent()


class Done:
    """How a command ended."""

    def __init__(self, code, out: str, err: str, begin: float, end: float, peak: int, limit: float):
        self.code, self.out, self.err, self.begin, self.end, self.peak = code, out, err, begin, end, peak
        self.limit = limit

    @property
    def timed_out(self) -> bool:
        return self.code is None

    @property
    def wall(self) -> float:
        return self.end - self.begin

    def why(self) -> str:
        """The end of what it said, in a line."""
        said = [line.strip() for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        how = f"stopped after {self.limit:.0f} s" if self.timed_out else f"exit code {self.code}"
        return f"{how}: {' / '.join(said[-3:])[-400:]}" if said else how

    def expect(self) -> "Done":
        if self.timed_out:
            raise TimedOut(self.why())
        if self.code != 0:
            raise Failed(self.why())
        return self


class Commands:
    """Runs commands one at a time, with logs under `logs`."""

    def __init__(self, budget: Budget, logs: pathlib.Path):
        self.budget, self.logs, self.count = budget, logs, 0
        self.running = None
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: list, env: dict, cwd: pathlib.Path, limit: float) -> Done:
        """Runs a command for `limit` seconds at most, and no longer than the budget goes."""
        limit = max(1.0, min(limit, self.budget.left()))
        self.count += 1
        base = self.logs / f"{self.count:02}-{name}"
        out, err = base.with_suffix(".out"), base.with_suffix(".err")
        command = [str(part) for part in command]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            begin = time.monotonic()
            self.running = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, cwd=cwd,
                start_new_session=True,
            )  # fmt: skip
            timed_out = False
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if not timed_out and time.monotonic() - begin > limit:
                    timed_out = True
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.01)
            end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        self.running = None
        code = None if timed_out else process.returncode
        with (self.logs / "commands.txt").open("a") as file:
            ended = "time out" if timed_out else f"exit {code}"
            file.write(f"{base.name}: {ended} in {end - begin:.1f} s: {' '.join(command)}\n")
        text = lambda path: path.read_bytes().decode("utf-8", "replace")  # noqa: E731
        return Done(code, text(out), text(err), begin, end, usage.ru_maxrss * 1024, limit)

    def kill(self) -> None:
        """Ends what is still running."""
        if self.running is not None and self.running.returncode is None:
            try:
                os.killpg(self.running.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

"""What was found, as markdown and as JSON."""

import json
import pathlib


class Report:
    def __init__(self):
        self.lines: list = []
        self.checks: list = []
        self.tables: dict = {}
        self.skipped: list = []
        self.data: dict = {}

    def check(self, what: str, passed: "bool | None", said: str) -> None:
        """Something that must hold; None where it is not known."""
        self.checks.append((what, passed, said))

    def skip(self, what: str, why: str) -> None:
        self.skipped.append((what, why))

    def table(self, name: str, head: list, rows: list) -> None:
        self.tables[name] = (head, rows)

    def row(self, name: str, head: list, row: list) -> None:
        self.tables.setdefault(name, (head, []))[1].append(row)

    def exit_code(self) -> int:
        if any(passed is False for _, passed, _ in self.checks):
            return 1
        proven = any(passed and what.startswith("parity") for what, passed, _ in self.checks)
        return 0 if proven and all(passed for _, passed, _ in self.checks) else 2

    def text(self) -> str:
        words = {True: "passed", False: "**FAILED**", None: "**not known**"}
        parts = ["".join(f"- {line}\n" for line in self.lines)]
        checks = [[what, words[passed], said] for what, passed, said in self.checks]
        if checks:
            parts.append(markdown(["what must hold", "", ""], checks))
        parts += [markdown(head, rows) for head, rows in self.tables.values()]
        if self.skipped:
            parts.append("Left out:\n\n" + "".join(f"- {what}: {why}\n" for what, why in self.skipped))
        return "\n".join(parts)

    def write(self, out: pathlib.Path) -> None:
        """Both files, whole or not at all."""
        data = {"lines": self.lines, "checks": self.checks, "tables": self.tables, "skipped": self.skipped, **self.data}
        for name, text in (("table.md", self.text()), ("report.json", json.dumps(data, indent=1))):
            (out / f"{name}.new").write_text(text)
            (out / f"{name}.new").replace(out / name)


def markdown(head: list, rows: list) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cell = lambda value: str(value).replace("|", "\\|").replace("\n", " ")  # noqa: E731
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)

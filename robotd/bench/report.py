"""What a bench found: tables, goals, notes; printed for people or as JSON for machines."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that is to stay on one side of a limit. NaN: it could not be measured."""

    text: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False  # else: at most

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if math.isnan(self.value):
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of figures; the first column names the row, `columns` maps keys to headings."""

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Report:
    """Everything one bench found."""

    bench: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; figures that are not there are null."""
        return {
            "bench": self.bench,
            "machine": self.machine,
            "settings": self.settings,
            "tables": [
                {"title": t.title, "columns": t.columns, "rows": _clean(t.rows)}
                for t in self.tables
            ],
            "goals": [{**_clean(asdict(goal)), "met": goal.met} for goal in self.goals],
            "notes": self.notes,
        }

    def render(self) -> RenderableType:
        """The page for people."""
        machine = self.machine
        head = Text(f"robotd bench {self.bench}", style="bold")
        head.append(
            f"\n{machine['date']}; {machine['kind']}\n"
            f"Linux {machine['kernel']}, Python {machine['python']}, robotd {machine['robotd']}; "
            f"{machine['realtime']}; load {machine['load_1min']}",
            style="dim",
        )
        parts: list[RenderableType] = [head]
        parts += [_rich_table(table) for table in self.tables]
        if self.goals:
            parts.append(_goals(self.goals))
        parts += [Text(f"- {note}", style="dim") for note in self.notes]
        return Group(*parts)

    def markdown(self) -> str:
        """The same as tables for a document."""
        machine = self.machine
        lines = [
            f"`robotd bench {self.bench}`, {machine['date'][:10]}: {machine['kind']}; "
            f"Linux {machine['kernel']}, Python {machine['python']}; {machine['realtime']}; "
            f"load {machine['load_1min']}",
            "",
        ]
        for table in self.tables:
            rows = [[cell(row.get(key)) for key in table.columns] for row in table.rows]
            first, *others = table.columns.values()
            lines += _markdown_table([first or table.title, *others], rows, table.title)
        if self.goals:
            lines += _markdown_table(
                ["goal", "limit", "measured", ""], [_goal_cells(goal) for goal in self.goals], ""
            )
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def _markdown_table(head: list[str], rows: list[list[str]], title: str) -> list[str]:
    title_lines = [f"**{title}**", ""] if title else []
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [*title_lines, *(f"| {' | '.join(row)} |" for row in (head, ruler, *rows)), ""]


def _goal_cells(goal: Goal) -> list[str]:
    bound = f"{'>=' if goal.at_least else '<='} {cell(float(goal.limit))} {goal.unit}"
    measured = f"{cell(goal.value)} {goal.unit}" if goal.met is not None else "-"
    words = {True: "met", False: "missed", None: "not measured"}
    return [goal.text, bound.strip(), measured.strip(), words[goal.met]]


def _clean(value: Any) -> Any:
    """NaN becomes None, floats are rounded to six digits."""
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def cell(value: Any) -> str:
    """A figure with three or so significant digits; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rich_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
    for index, heading in enumerate(table.columns.values()):
        shown.add_column(heading, justify="right" if index else "left", header_style="dim")
    for row in table.rows:
        shown.add_row(*(cell(row.get(key)) for key in table.columns))
    return shown


def _goals(goals: list[Goal]) -> RichTable:
    shown = RichTable(title="goals", title_justify="left", box=None, pad_edge=False)
    shown.add_column("goal", header_style="dim")
    shown.add_column("limit", justify="right", header_style="dim")
    shown.add_column("measured", justify="right", header_style="dim")
    shown.add_column("", header_style="dim")
    style = {"met": "green", "missed": "red", "not measured": "yellow"}
    for goal in goals:
        *cells, word = _goal_cells(goal)
        shown.add_row(*cells, f"[{style[word]}]{word}[/]")
    return shown

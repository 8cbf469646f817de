"""Figures, goals and the report's two forms."""

import io
import json
import math
from pathlib import Path

from rich.console import Console

from robotd.bench.figures import cpu_seconds, median, memory_mb, percentile, ratio, spread_us
from robotd.bench.machine import describe
from robotd.bench.report import Goal, Report, Table
from robotd.bench.tick import paired_ratio


def test_percentiles_are_values_that_occurred() -> None:
    values = list(range(100, 0, -1))
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile(values, 1.0) == 100
    assert math.isnan(percentile([], 0.5))
    assert spread_us([1000, 2000, 3000])["max"] == 3.0


def test_the_median_of_an_even_number_lies_between() -> None:
    assert median([4, 1, 3, 2]) == 2.5
    assert median([5, 1, 2]) == 2
    assert math.isnan(median([]))


def test_a_ratio_is_taken_round_by_round_and_skips_failed_ones() -> None:
    assert paired_ratio([2, 30, math.nan], [1, 10, 1]) == 2.5
    assert math.isnan(paired_ratio([], [1.0]))
    assert math.isnan(ratio(1.0, 0.0))


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed() -> None:
    assert Goal("speed", 3.2, 3.0, at_least=True).met is True
    assert Goal("speed", 2.9, 3.0, at_least=True).met is False
    assert Goal("latency", 5.1, 5.0).met is False
    assert Goal("latency", math.nan, 5.0).met is None


def test_a_report_is_valid_json_and_a_page() -> None:
    rows = [{"who": "a", "value": math.nan}, {"who": "b", "value": 1234.5678}]
    report = Report("tick", describe(), {"ticks": 1})
    report.tables.append(Table("a table", {"who": "who", "value": "value us"}, rows))
    report.goals.append(Goal("a goal", math.nan, 1.0))
    report.notes.append("a note")
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text)["tables"][0]["rows"][0]["value"] is None
    assert json.loads(text)["goals"][0]["met"] is None
    assert "| who | value us |\n| --- | ---: |\n| a | - |\n| b | 1235 |" in report.markdown()
    page = io.StringIO()
    Console(file=page, width=120).print(report.render())
    for expected in ("a table", "1235", "not measured", "a note", "Python"):
        assert expected in page.getvalue()


def test_a_machine_says_what_it_is() -> None:
    machine = describe()
    assert set(machine) >= {"date", "kind", "kernel", "python", "realtime", "load_1min"}
    assert "cores" in machine["kind"]


def test_a_process_that_is_gone_has_no_figures(tmp_path: Path) -> None:
    assert math.isnan(cpu_seconds(2**22 + 1))
    assert math.isnan(memory_mb(2**22 + 1)["resident"])

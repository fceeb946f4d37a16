"""docs/vllm.md's tables of options and metrics are those of the code."""

from __future__ import annotations

import pathlib
import unittest

from kvist.vllm import config, figures

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "vllm.md"


def option_row(option: config.Option) -> str:
    """One line of the table "Options"."""
    if isinstance(option.default, bool):
        default = "true" if option.default else "false"
    elif isinstance(option.default, str):
        default = f"`{option.default}`" if option.default else "empty"
    else:
        default = f"{option.default:g}"
    names = ", ".join(f"`{choice}`" for choice in option.choices)
    choices = f" ({names})" if names else ""
    return f"| `{option.name}` | {default} | {option.help}{choices} |"


def metric_row(metric: figures.Metric) -> str:
    """One line of the table "Metrics"."""
    name = metric.prometheus_name + ("_total" if metric.kind is figures.Kind.COUNTER else "")
    label = f"`{metric.label}`" if metric.label else ""
    return f"| `{name}` | {label} | {metric.text} |"


class DocumentTest(unittest.TestCase):
    def check(self, heading: str, rows: list[str]) -> None:
        section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        table = [line for line in section.splitlines() if line.startswith("| `")]
        self.maxDiff = None
        self.assertEqual(table, rows)

    def test_options(self) -> None:
        self.check("Options", [option_row(option) for option in config.OPTIONS])

    def test_metrics(self) -> None:
        self.check("Metrics", [metric_row(metric) for metric in figures.METRICS.values()])


if __name__ == "__main__":
    unittest.main()

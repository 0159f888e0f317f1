"""Tables of studies: as text, as CSV columns, as LaTeX, and on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from pie_engine.cli.tables import show
from pie_engine.evaluation.tables import Table, column_names, interval_text, to_csv, to_latex

TABLE = Table(["text", "rise"], [["a_b & c", "0.1 [0, 0.2]"], ["[x]", ""]], "50 % of 2", ["below #1"])


def test_plain_text_is_aligned() -> None:
    assert str(TABLE).splitlines() == ["50 % of 2", "text     rise", "a_b & c  0.1 [0, 0.2]", "[x]", "below #1"]


def test_latex_escapes_what_it_is_given() -> None:
    assert to_latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"  \centering",
        r"  \caption{50 \% of 2}",
        r"  \begin{tabular}{ll}",
        r"    \toprule",
        r"    text & rise \\",
        r"    \midrule",
        r"    a\_b \& c & 0.1 [0, 0.2] \\",
        r"    {[x]} &  \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"  \par\smallskip below \#1",
        r"\end{table}",
    ]
    hostile = to_latex(Table(["a"], [[r"\input{/etc/passwd} ~^$<>"]]))
    assert r"\textbackslash{}input\{/etc/passwd\} \textasciitilde{}\textasciicircum{}\$\textless{}" in hostile


def test_columns_are_snake_case_and_differ() -> None:
    measures = [
        "clip_i",
        "confidence: Lung opacity",
        "confidence: lung-opacity",
        "distance: LPIPS (alex)",
        "guidance-scale",
    ]
    assert column_names(measures) == [
        "clip_i", "confidence_lung_opacity", "confidence_lung_opacity_2", "distance_lpips_alex", "guidance_scale",
    ]  # fmt: skip
    assert to_csv(["a", "b"], [["x, y", None]]) == 'a,b\n"x, y",\n'


@pytest.mark.parametrize(
    ("low", "expected"), [(None, "0.123"), (0.1, "0.123 [0.100, 0.200]")], ids=["one patient", "several"]
)
def test_intervals(low: float | None, expected: str) -> None:
    estimate = {"mean": 0.1234, "low": low, "high": low and 0.2}
    assert interval_text(estimate, ".3f") == expected
    assert interval_text(None, ".3f", "none") == "none"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_drawn_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show([TABLE], "last line")
    drawn = terminal.getvalue()
    for text in ("50 % of 2", "a_b & c", "[0, 0.2]", "[x]", "below #1", "───", "last line"):
        assert text in drawn


def test_elsewhere_it_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    show([TABLE, TABLE], "last line")
    assert capsys.readouterr().out == f"{TABLE}\n\n{TABLE}\nlast line\n"

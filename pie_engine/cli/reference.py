"""The page of all settings, made from their declarations: `python -m pie_engine.cli.reference docs/settings.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pie_engine.cli.options import options_of, told_default
from pie_engine.config import BuildConfig, EngineConfig, MethodConfig, OutputConfig, Placement, RunConfig, RuntimeConfig
from pie_engine.config.settings import Setting, declared, shown_choices, type_of

HEAD = """# Settings

Every setting by its name in Python, with the option of `pie-engine` that sets it, in parentheses the paper's symbol.
This page is made from the declarations in `pie_engine/config/` (`python -m pie_engine.cli.reference docs/settings.md`).
The same names stand in a settings file (`pie-engine run --print-config > run.yaml`, `--config run.yaml`) and in
`provenance.json`; those with a sweep's mark may be varied by `pie-engine sweep --grid`.
"""
SECTIONS = {
    RunConfig: "What a progression is (`RunConfig`)",
    MethodConfig: "What gives the frames (`MethodConfig`)",
    Placement: "Where the model runs (`Placement`)",
    RuntimeConfig: "How it is computed (`RuntimeConfig`); the results agree up to rounding",
    OutputConfig: "What is written (`OutputConfig`)",
    BuildConfig: "What a bundle is built for (`BuildConfig`)",
    EngineConfig: "Which TensorRT engines are compiled (`EngineConfig`)",
}


def reference() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n## {title}\n\n" + "\n".join(table(cls)) + "\n" for cls, title in SECTIONS.items())


def table(cls: type) -> Iterator[str]:
    """One row for each setting of a class."""
    yield "| setting | option | meaning | limits | default | sweep |"
    yield "| --- | --- | --- | --- | --- | --- |"
    options = options_of(cls)
    for name, setting in declared(cls):
        symbol = f" ({setting.symbol})" if setting.symbol and setting.symbol != name else ""
        names = (options[name], *(f"--{other}" for other in setting.also))
        unit = f", in {setting.unit}" if setting.unit not in setting.help else ""
        cells = (
            f"`{name}`{symbol}", ", ".join(f"`{option}`" for option in names), setting.help + unit,
            limits(cls, name, setting), told_default(cls, name, setting), "yes" if setting.vary else "",
        )  # fmt: skip
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def limits(cls: type, name: str, setting: Setting) -> str:
    """What a setting may be, in words."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in shown_choices(setting))
    if setting.low is None:
        return "on, off" if bool in (type_of(cls, name), *getattr(type_of(cls, name), "__args__", ())) else ""
    return f"{'(' if setting.open_low else '['}{_short(setting.low)}, {_short(setting.high)}]"


def _short(bound: float | None) -> str:
    """A bound; a power of two less one as such, as nobody reads 19 digits."""
    if isinstance(bound, int) and bound > 10**6 and (bound + 1).bit_count() == 1:
        return f"2^{bound.bit_length()} - 1"
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def main() -> int:
    path = Path(sys.argv[1])
    path.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

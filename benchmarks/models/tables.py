"""A report as a table of a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .results import Line, Report


def report_table(report: Report) -> str:
    """What was measured where, and a row for each prompt: of each model its best, the fastest bold.

    Of steps also a row for each batch after the prompt of which most were measured.
    """
    machine, versions = report.machine, ("torch", "triton", "transformers", "flash-linear-attention")
    named = [f"{name} {machine[name]}" for name in versions if machine.get(name)]
    head = ", ".join([str(machine["device"]), report.ceilings.matmul_dtype, str(machine["date"]), *named])
    rates = f"{report.ceilings.copy_gb_s:.0f} GB/s, {report.ceilings.matmul_tflop_s:.0f} TFLOP/s"
    rows = _generated(report) if report.task == "generate" else _read(report)
    return "\n".join([f"{head}. In brackets the share of what {rates} allow.", "", *rows]) + "\n"


def _generated(report: Report) -> Iterable[str]:
    """Tokens a second at the best batch, and milliseconds of a step at batch 1."""
    models = report.models
    yield _row(("prompt", *(f"{model}, tokens/s" for model in models), "batch 1, ms"))
    yield _row(["---"] * (len(models) + 2))
    for prompt in report.prompts:
        best = [report.best(model, prompt) for model in models]
        first = max((line.tokens_per_second for line in best if line), default=0.0)
        single = [report.best(model, prompt, 1) for model in models]
        steps = ", ".join("–" if line is None else f"{line.ms:.2f}" for line in single)
        yield _row((_tokens(prompt), *(_rate(line, first) for line in best), steps))
    prompt = Counter(line.point.prompt for line in report.lines).most_common(1)[0][0]
    yield ""
    yield f"After prompts of {_tokens(prompt)}, each model's fastest way, milliseconds:"
    yield ""
    yield _row(("batch", *models))
    yield _row(["---"] * (len(models) + 1))
    for batch in sorted({line.batch for line in report.lines if line.point.prompt == prompt}):
        at = [report.best(model, prompt, batch) for model in models]
        yield _row((str(batch), *(_ms(line, min(x.ms for x in at if x)) for line in at)))


def _rate(line: Line | None, first: float) -> str:
    if line is None:
        return ""
    text = f"{line.tokens_per_second:,.0f} at B{line.batch} ({line.percent:.0f} %)"
    return f"**{text}**" if line.tokens_per_second == first else text


def _read(report: Report) -> Iterable[str]:
    """Milliseconds of prompts."""
    models = report.models
    yield _row(("prompts", *(f"{model}, ms" for model in models)))
    yield _row(["---"] * (len(models) + 1))
    for batch, prompt in sorted({(line.batch, line.point.prompt) for line in report.lines}):
        best = [report.best(model, prompt, batch) for model in models]
        first = min((line.ms for line in best if line), default=0.0)
        yield _row((f"{batch} × {_tokens(prompt)}", *(_ms(line, first) for line in best)))


def _ms(line: Line | None, first: float) -> str:
    if line is None:
        return ""
    text = f"{line.ms:#.3g}".rstrip(".") + f" ({line.percent:.0f} %)"
    return f"**{text}**" if line.ms == first else text


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else str(count)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"

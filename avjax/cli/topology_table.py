"""A plan for TPU chips, on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from avjax.tpu.chips import GIB
from avjax.tpu.topology_plan import TopologyPlan


def print_topology_plan(plan: TopologyPlan, console: Console | None = None) -> None:
    """What each program takes and costs on a chip, and whether it fits."""
    console = console or Console()
    title = f"{plan.config} in {plan.dtype} on {plan.topology}, {plan.prompt_tokens:,} tokens, {plan.cells:,} cells"
    table = Table(title=Text(f"{title}; per chip"), title_justify="left")
    for name in ("program", "calls", "arguments", "results", "temporary", "TFLOP", "ms"):
        table.add_column(name, justify="left" if name == "program" else "right")
    for program, seconds in zip(plan.programs, plan.seconds_of, strict=True):
        parts = (program.argument_bytes, program.output_bytes, program.temporary_bytes)
        sizes = (f"{part / GIB:.3f} GiB" for part in parts)
        flops = f"{program.flops * program.calls / 1e12:,.2f}"
        table.add_row(program.name, str(program.calls), *sizes, flops, f"{1e3 * seconds:,.1f}")
    console.print(table)
    names = ("data", "variant", "model")
    mesh, least = (
        ", ".join(f"{n} {size}" for n, size in zip(names, m, strict=True)) for m in (plan.mesh, plan.smallest[1])
    )
    for line in (
        f"mesh: {mesh}",
        f"memory: parameters {plan.parameter_bytes / GIB:.2f}, encoded clips {plan.encoded_bytes / GIB:.2f}, temporary "
        f"{plan.temporary_bytes / GIB:.2f}, peak {plan.peak_bytes / GIB:.2f} of {plan.hbm_bytes / GIB:.2f} GiB",
        f"time: {plan.seconds:.2f} s for a prompt ({plan.flops / 1e12:,.1f} TFLOP), at the chip's peak rates",
        f"smallest that fits: {plan.smallest[0]}, mesh {least}",
    ):
        console.print(line, highlight=False)

"""`headrace simulate` and what is under it, as the command line has it; the work is in services.console.commands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.console import terminal
from services.console.problem import Problem


class TraceOrCommand(TyperGroup):
    """`headrace simulate TRACE …` is short for `headrace simulate run TRACE …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Play a trace against a mesh in virtual time: `headrace simulate TRACE`.",
    cls=TraceOrCommand,
    no_args_is_help=True,
)


@app.command()
def run(
    trace: Annotated[Path, typer.Argument(help="A Mooncake (JSON lines) or Azure (CSV) trace, gzipped or not.")],
    executors: Annotated[int, typer.Option(min=1, max=4096, help="All alike.")] = 16,
    gpu: Annotated[
        str, typer.Option(help="Their class, or the YAML of a model with a `simulation` that was calibrated.")
    ] = "h100-8b",
    policy: Annotated[str, typer.Option(help="Dispatch policies, comma-separated, or all.")] = "promise",
    rate: Annotated[str, typer.Option(help="Loads, comma-separated: 2 plays the trace twice as fast.")] = "1",
    requests_per_s: Annotated[str, typer.Option(help="Loads in requests per second, instead of --rate.")] = "",
    copies: Annotated[
        int, typer.Option(min=0, help="Lay the trace over itself so often; 0: as --requests-per-s needs.")
    ] = 1,
    tenants: Annotated[str, typer.Option(help='"4", "4:zipf", or shares by name: "a=100,b=1".')] = "1",
    async_share: Annotated[float, typer.Option(min=0, max=1, help="Share of conversations that are async.")] = 0.0,
    adapters: Annotated[int, typer.Option(min=0, help="LoRA adapters, in equal shares.")] = 0,
    first: Annotated[str, typer.Option(help="Only so much of the trace: 90s, 10m, 1h.")] = "",
    requests: Annotated[int, typer.Option(min=0, help="Only so many of its requests.")] = 0,
    spread: Annotated[str, typer.Option(help="Move each arrival forward at random, up to: 3s.")] = "",
    slo_ttft: Annotated[float, typer.Option(min=0.001, help="Seconds to the first token…")] = 2.0,
    slo_stretch: Annotated[float, typer.Option(min=0, help="…or this many times what an idle executor takes.")] = 5.0,
    slo_itl: Annotated[float, typer.Option(min=0.001, help="Seconds between tokens, on average.")] = 0.05,
    block_tokens: Annotated[int, typer.Option(min=0, help="Of the KV cache; by default the trace's.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; by default one for each core.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = Path("simulation"),
) -> None:
    """Simulate every policy at every load, show a table, write report.html, result.json and the plots."""
    from services.console.commands.simulate import Simulate, simulate
    from services.simulator.measure import Slo

    simulate(
        Simulate(
            trace=trace,
            executors=executors,
            gpu=gpu,
            policies=policy,
            rates=rate,
            requests_per_s=requests_per_s,
            copies=copies,
            tenants=tenants,
            async_share=async_share,
            adapters=adapters,
            first=first,
            requests=requests,
            spread=spread,
            slo=Slo(slo_ttft, slo_stretch, slo_itl),
            block_tokens=block_tokens,
            seed=seed,
            jobs=jobs,
            out=out,
        ),
        terminal.out(),
    )


@app.command()
def calibrate(
    target: Annotated[str, typer.Option(help="host:port of the mesh.")],
    model: Annotated[str, typer.Option(help="The model to measure; its executor should have nothing else to do.")],
    key: Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", help="An operator's key.")] = None,
    longest: Annotated[int, typer.Option(min=0, help="Tokens of the longest prompt; by default what fits.")] = 0,
    widest: Annotated[int, typer.Option(min=0, help="Most requests at once; by default the slots, up to 16.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="How often each probe is sent.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts, and of what is held back.")] = 0,
) -> None:
    """Fit the step model to a live executor, and print it as the `simulation` of a model document."""
    from services.console.commands.calibrate import Calibrate
    from services.console.commands.calibrate import calibrate as run

    if key is None:
        raise Problem("an API key is needed", advice="`--key`, or HEADRACE_API_KEY in the environment")
    run(Calibrate(target, key, model, longest, widest, repeats, seed), terminal.out(), terminal.err())

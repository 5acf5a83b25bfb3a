"""The `haq` command: gathers the commands, maps errors to exit codes. Each command's arguments stand with it.

Results go to standard output, everything else to standard error; whatever the user's own code prints, too.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from haq import __version__
from haq.commands import (
    benchmarks,
    devices,
    exporting,
    family,
    init,
    inspect,
    lint,
    measuring,
    plan_training,
    profiles,
    searching,
    serve,
    storage,
    study,
)
from haq.commands.options import EXIT_INFEASIBLE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_OTHER
from haq.commands.terminal import (
    print_out,
    stderr,
)
from haq.values.errors import InfeasibleError, InputError, shortened

app = typer.Typer(
    help="Hardware-aware mixed-precision search: the best bit-width per layer for a model, a device and a budget.",
    epilog="Exit codes: 0 done, 2 bad input, 3 no policy meets the budgets, 4 an export failed its check, "
    "130 interrupted, 1 anything else.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
)
hardware_app = typer.Typer(help="The devices that have a profile.", no_args_is_help=True)
app.add_typer(hardware_app, name="hardware")
cache_app = typer.Typer(help="The measurements kept between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
bench_app = typer.Typer(help="Benchmarks whose answer is known.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
for _command in (
    searching.search,
    searching.sweep,
    measuring.solve,
    measuring.cost,
    measuring.evaluate,
    measuring.sensitivity,
    exporting.export,
    searching.ladder,
    profiles.profile,
    profiles.validate,
    searching.compare,
    inspect.inspect,
    init.init,
    lint.lint,
    plan_training.plan_training,
    study.study,
    family.family,
    family.adapt,
    serve.serve,
):
    app.command()(_command)
hardware_app.command("list")(devices.hardware_list)
hardware_app.command("show")(devices.hardware_show)
hardware_app.command("template")(devices.template)
hardware_app.command("check")(devices.check)
cache_app.command("info")(storage.cache_show)
cache_app.command("clear")(storage.cache_clear)
bench_app.command("regret")(benchmarks.bench_regret)


def _version(show: bool) -> None:
    if show:
        print_out(f"haq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _fail(message: str, code: int) -> int:
    stderr.print(f"haq: {' '.join(message.split())}")
    return code


def _other(error: Exception) -> int:
    usage = getattr(error, "format_message", None)  # typer's own errors, whichever click it brings
    if type(error).__name__ == "NoArgsIsHelpError":
        stderr.print(str(error))
        return EXIT_INPUT
    if usage is not None:
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context else ""
        return _fail(shortened(usage()).rstrip(".") + hint, EXIT_INPUT)
    if isinstance(error, OSError) and error.filename is not None:  # a name too long, a file that nobody may read, ...
        return _fail(shortened(f"{error.filename!r}: cannot be used: {error.strerror}"), EXIT_INPUT)
    return _fail(f"{type(error).__name__}: {shortened(str(error))} (set HAQ_DEBUG=1 for the traceback)", EXIT_OTHER)


def _interrupted() -> int:
    searching = sys.argv[1:2] in (["search"], ["profile"], ["sweep"])
    return _fail("interrupted" + "; add --resume to go on where it stopped" * searching, EXIT_INTERRUPTED)


def _usable_streams() -> None:
    """A closed stream swallows what is written; a character that the terminal's encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; map errors to one line and an exit code."""
    _usable_streams()
    sys.exit(_main())


def _main() -> int:
    try:
        outcome = app(standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:  # whoever read standard output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OTHER
    except Exception as error:
        if os.environ.get("HAQ_DEBUG"):
            raise
        if isinstance(error, InputError):
            return _fail(str(error), EXIT_INPUT)
        if isinstance(error, InfeasibleError):
            return _fail(str(error), EXIT_INFEASIBLE)
        return _other(error)
    if outcome == EXIT_INTERRUPTED:  # some releases of typer turn the interrupt into this
        return _interrupted()
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()

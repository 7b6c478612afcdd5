"""The command: a thin skin over the functions between the values."""

from __future__ import annotations

import sys

import typer

from rocm_patch.cli import benching, building, changing, explaining, fixing, looking, patching, probing, sanitizing, scanning

app = typer.Typer(
    name="rocm-patch",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 problems found or a remedy failed, 2 usage, 3 not everything could be read, "
    "4 done but needs a new login or a restart, 5 refused by a safety gate.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Tell what is wrong with PyTorch on an RDNA1 or RDNA2 card, prove it, repair it, take the repair back."""
    if version:
        from rocm_patch import __version__

        sys.stdout.write(f"rocm-patch {__version__}\n")
        raise typer.Exit


for module in (looking, explaining, scanning, probing, fixing, changing, sanitizing, benching, patching, building):
    module.register(app)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="rocm-patch")
    except KeyboardInterrupt:  # before a verb runs; from then on the verb answers it
        sys.stderr.write("\ninterrupted\n")
        raise SystemExit(130) from None

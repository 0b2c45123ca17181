"""The `ifsq` command: one module per group of subcommands, options they share in `options`.

Parses arguments and shows results; what a command does lives in the packages below this one.
"""

from launchers.cli.program import app, main

__all__ = ["app", "main"]

"""`python -m launchers.cli` is the `ifsq` command."""

from launchers.cli.program import main

main()

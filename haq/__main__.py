"""`python -m haq` is the `haq` command."""

from haq.commands.cli import main

main()

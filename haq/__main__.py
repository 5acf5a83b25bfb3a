"""`python -m haq` is the `haq` command."""

from haq.cli import main

main()

"""`python -m service` is the `sayagain` command."""

from service.cli import main

main()

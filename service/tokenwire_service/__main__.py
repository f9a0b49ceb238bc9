"""`python -m tokenwire_service` is the `tokenwire` command."""

from tokenwire_service.cli import main

main()

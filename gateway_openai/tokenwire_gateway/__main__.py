"""`python -m tokenwire_gateway`."""

from tokenwire_gateway.cli import main

main()

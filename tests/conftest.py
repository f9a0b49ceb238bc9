"""For every test: engines behave under a crowded machine as the `tokenwire` command makes them."""

import os

from tokenwire_service.config import OPENMP_SPIN

# Before anything imports torch: OpenMP reads it when it is loaded.
os.environ.setdefault(*OPENMP_SPIN)

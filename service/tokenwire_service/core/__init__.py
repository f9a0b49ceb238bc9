"""Values shared by every layer: no behaviour, no third-party imports."""

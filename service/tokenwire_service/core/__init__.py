"""What every layer shares, without third-party imports: values without behaviour, and the lines of the log."""

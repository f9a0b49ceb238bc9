"""One module per engine, run as `python -m bench.contenders.<name>` by that engine's own Python: nothing here but
`tokenwire` imports anything of ours, and `worker` imports the standard library alone."""

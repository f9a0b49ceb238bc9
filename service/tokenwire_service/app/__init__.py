"""Wires the service together; the only package that knows every part."""

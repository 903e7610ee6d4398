"""Preparing datasets once, before training: `python -m jaxseg.data.prepare --help`."""

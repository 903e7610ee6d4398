"""Preparing datasets for TensorFlow Datasets: `python -m jaxseg.data.prepare --help`."""

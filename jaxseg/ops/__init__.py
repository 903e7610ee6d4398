"""Pure array functions, each with its own test against an independent oracle."""

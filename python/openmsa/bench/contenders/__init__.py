"""Libraries that are measured, a module each. The tables of the sections name them."""

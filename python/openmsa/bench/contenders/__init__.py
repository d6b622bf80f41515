"""Those who are measured, a module each, by the sections' tables."""

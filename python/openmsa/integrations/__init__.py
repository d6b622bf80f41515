"""openmsa inside other libraries."""

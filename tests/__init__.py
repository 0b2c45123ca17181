"""All tests; a package, so that a test imports helpers by their full name from `tests.support`."""

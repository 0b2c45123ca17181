"""Ideas added from outside the packages, and the tests that they work from recipe to images."""

"""`ifsq study`: the stages of a study, run here or as a graph of Ray tasks."""

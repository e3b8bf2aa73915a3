"""Transfer: what was learned elsewhere, moved to a new task by several methods, and the verdict whether it helped."""

"""Which tasks help each other, and which of them to learn together: affinities, and the groups that they propose."""

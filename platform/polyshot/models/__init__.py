"""Models: encoder × sharing scheme × heads, in plain torch."""

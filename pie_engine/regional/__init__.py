"""A network computed in a box of its picture alone, between recordings of what surrounds it."""

"""The hosts, one file a family, and the zoo that names every system."""

"""The hosts, one file a family; host.py has what they share."""

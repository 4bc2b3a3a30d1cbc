"""Side by side with the packages that a user would pick instead: time, memory, equal outputs."""

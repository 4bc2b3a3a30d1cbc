"""The companion: what reproduces the paper. It imports the library, never the other way round."""

"""Device code in files: readers of containers, one module each, and what a machine's installed libraries hold (`installed`)."""

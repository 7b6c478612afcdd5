"""Start of a ComfyUI checkout, reduced to its file name."""

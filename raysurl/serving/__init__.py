"""A trained model behind HTTP: its limits, its answers, who may ask; raysurl.scale.serve puts it on Ray Serve."""

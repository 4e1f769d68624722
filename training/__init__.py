"""Training, evaluation and the demo of the Large Connectome Model; run the modules with `python -m training.NAME`."""

"""A page to try a checkpoint on a scan of one's own: a Gradio app in the layout of a Hub Space."""

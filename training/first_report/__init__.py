"""A first report in one command: recognise, prepare, evaluate, fine-tune, explain, and one page."""

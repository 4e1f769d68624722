"""How a command starts: its settings, help, errors, and the list of all commands."""

"""The first thing that the server of the workers imports: it ends with the run, also while it imports all the rest."""

from .with_parent import end_with_parent


end_with_parent()

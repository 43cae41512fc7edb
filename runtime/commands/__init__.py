"""`python -m runtime`: a file each command, what their arguments share, and how results and errors leave them."""

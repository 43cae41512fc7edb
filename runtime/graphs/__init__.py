"""The graphs of a package and their sessions: opened, fed, run, packed into calls."""

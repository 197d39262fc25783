"""Questions in, answers out: search, HTTP and the command line."""

"""HTTP: what the services share."""

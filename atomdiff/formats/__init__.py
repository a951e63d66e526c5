"""The only readers and writers of concept files."""

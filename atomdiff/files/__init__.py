"""The only readers and writers: concept files in every form in which they travel, and pictures."""

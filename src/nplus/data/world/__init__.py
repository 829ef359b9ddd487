"""The embedded world: synthetic posts with hidden facts, writers, a gold score, labellers."""

"""apptainer-fleet: the command-line side of the project."""

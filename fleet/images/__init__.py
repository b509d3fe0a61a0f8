"""Images on the controller: what needs libraries that nodes do not have."""

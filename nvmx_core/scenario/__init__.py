"""What a run is made of: a configuration and a list of steps, and their text form."""

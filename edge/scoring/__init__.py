"""`Windows` → `Event`s: backends run the model, scorers say how strange, the calibrator how rare, the alarm whether to tell."""

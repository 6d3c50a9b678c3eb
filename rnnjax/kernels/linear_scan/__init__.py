"""The diagonal linear recurrence, on each platform by its kernel."""

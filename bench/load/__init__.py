"""What a service does under load."""

"""What an optimizer is told: learning-rate schedules."""

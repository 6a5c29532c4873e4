"""What a training is judged by: scores, summaries, tables, pictures, and comparisons of several trainings."""

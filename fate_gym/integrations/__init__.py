"""The environments in the forms that other trainers take; one module each, named after the trainer."""

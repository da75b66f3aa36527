"""What all of fastgpt stands on: checks of settings, files that are whole or not there, bars. Imports nothing of it."""

"""Decides what a pipeline should look like and puts it to work; home of the `midstream` command."""

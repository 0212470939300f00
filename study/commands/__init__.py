"""The subcommands of the program beside the study itself: a file each."""

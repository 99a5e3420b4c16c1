"""What the commands of the command line share: how options look (`arguments`), and how a command ends (`ending`).

Both import click and nothing heavy, so that `qatc --help` answers at once.
"""

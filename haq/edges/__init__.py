"""Where data enters and leaves: TOML and JSON documents, users' own functions, sections of files, progress.

In: paths and text. Out: checked values, or one line that says what is wrong.
"""

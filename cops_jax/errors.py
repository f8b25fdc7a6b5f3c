"""The one exception that scripts show as a sentence instead of a traceback."""


class InputError(ValueError):
  """What the user gave cannot be used: a config value, a file, a folder.

  The message is complete: what and where, what was expected, what to do.
  """

"""The one exception that scripts show as a sentence instead of a traceback."""


class InputError(ValueError):
  """What the user gave cannot be used: a config value, a file, a folder.

  The message is complete: what and where, what was expected, what to do.
  """


def shorten(reason: object) -> str:
  """A library's error as text; some quote whole files."""
  text = str(reason) or type(reason).__name__
  return text if len(text) <= 400 else f"{text[:400]}..."

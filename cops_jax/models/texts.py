"""Hand-written texts of what is normal and what is not, from a file.

A file has three sections, `[normal]`, `[anomalous]` and `[templates]`, with a
text in each line. States have a {} for the object's name, templates one for
the state; lines that begin with # are comments. Every state comes in every
template.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Sequence

from cops_jax.errors import InputError

# Files of this project by name.
FOLDER = pathlib.Path(__file__).parent / "prompt_texts"
_SECTIONS = ("normal", "anomalous", "templates")


@dataclasses.dataclass(frozen=True)
class Texts:
  """What an ensemble of prompts is made of.

  Attributes:
    normal, anomalous: states.
    templates: sentences.
  """

  normal: tuple[str, ...]
  anomalous: tuple[str, ...]
  templates: tuple[str, ...]

  def sentences(self, name: str) -> tuple[list[str], list[str]]:
    """Of normal and of anomalous objects: every state in every template.

    Args:
      name: of the object.
    """
    return tuple(
      [
        template.replace("{}", state.replace("{}", name))
        for state, template in itertools.product(states, self.templates)
      ]
      for states in (self.normal, self.anomalous)
    )


def read_texts(
  source: str, normal: Sequence[str] = (), anomalous: Sequence[str] = ()
) -> Texts:
  """The texts of a file, or of one of this project by its name.

  Args:
    source: a file's path or, in `FOLDER`, its name without ".txt".
    normal, anomalous: in place of the file's states, such as "a weld with a
      crack". A {} for the object's name may be in them; an article that they
      begin with is left out, as templates bring their own.

  Raises:
    InputError: there is no such file, or it is not as the module says; names
      the line.
  """
  path = FOLDER / f"{source}.txt"
  if not path.is_file():
    path = pathlib.Path(source)
  try:
    lines = path.read_text("utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise InputError(
      f"config.model.texts is {source!r}, and no file of texts can be read"
      f" there ({error}): give a path, or one of"
      f" {', '.join(sorted(file.stem for file in FOLDER.glob('*.txt')))}"
    ) from error
  sections = _parse(lines, path)
  for name, given in (("normal", normal), ("anomalous", anomalous)):
    if given:
      sections[name] = [_state(text, name) for text in given]
  return Texts(**{name: tuple(sections[name]) for name in _SECTIONS})


def _parse(lines, path):
  sections, texts = {name: [] for name in _SECTIONS}, None
  for number, line in enumerate(lines, start=1):
    line = line.strip()
    if not line or line.startswith("#"):
      continue
    if heading := re.fullmatch(r"\[(.*)\]", line):
      texts = sections.get(heading[1])
    elif texts is not None and line.count("{}") == 1:
      texts.append(line)
      continue
    else:
      texts = None
    if texts is None:
      raise InputError(
        f"line {number} of {path} is {line!r}: expected one of the headings"
        f" {', '.join(f'[{name}]' for name in _SECTIONS)} or, below one, a text"
        " with one {}"
      )
  empty = [name for name in _SECTIONS if not sections[name]]
  if empty:
    raise InputError(f"{path} has no texts under [{empty[0]}]")
  return sections


def _state(text, name):
  state = re.sub(r"^(an?|the)\s+", "", " ".join(text.split()), flags=re.I)
  if not state:
    raise InputError(f"config.model.{name}_texts has an empty text: {text!r}")
  return state

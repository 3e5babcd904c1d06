"""Text and tokens: the standard library as corpus, files, long-range tasks, windows."""

from .stdlib import PARTS as PARTS
from .stdlib import Document as Document
from .stdlib import Part as Part
from .stdlib import stdlib as stdlib
from .windows import windows as windows

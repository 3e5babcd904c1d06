"""Text and tokens: the standard library as corpus, files, long-range tasks, windows."""

from .benchmarks import benchmark as benchmark
from .stdlib import PARTS as PARTS
from .stdlib import Document as Document
from .stdlib import stdlib as stdlib
from .tasks import Open as Open
from .tasks import Task as Task
from .tasks import Turn as Turn
from .tasks import needle as needle
from .tasks import table as table
from .tasks import variables as variables
from .texts import corpus as corpus
from .windows import every_window as every_window
from .windows import windows as windows

"""The words that every room shares. Imports nothing of ours, and no torch."""

from .budget import SCOPES as SCOPES
from .budget import Budget as Budget
from .budget import Scope as Scope
from .budget import budget as budget
from .group import Group as Group
from .method import Method as Method
from .method import axes as axes
from .method import find as find
from .method import method as method
from .method import methods as methods
from .method import offered as offered
from .paper import AT_RANDOM as AT_RANDOM
from .paper import Paper as Paper
from .site import Change as Change
from .site import Site as Site
from .target import Target as Target
from .target import target as target

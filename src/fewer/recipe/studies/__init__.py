"""Questions that a paper asked, asked again of any model: each study is one file, its settings are its fields."""

from ._study import Found as Found
from ._study import Study as Study
from .knee import Knee as Knee
from .large_small import LargeSmall as LargeSmall
from .search import Search as Search
from .sensitivity import Sensitivity as Sensitivity

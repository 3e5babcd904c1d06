"""What is done with a learnt dictionary: kept on disk in anybody's form, put into a running model, looked at."""

from .doors import load as load
from .files import save as save
from .splice import spliced as spliced
from .steer import steered as steered

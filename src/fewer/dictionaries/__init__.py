"""What is done with a learnt dictionary: kept on disk in anybody's form, put into a running model, looked at."""

from .doors import load as load
from .doors import load_all as load_all
from .doors import save as save
from .splice import spliced as spliced
from .steer import steered as steered

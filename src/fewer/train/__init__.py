"""Learning: what a method cannot be told by a formula it is shown. One loop for all of it, exact to the bit after a kill.

A method stays a value all the same: a learner takes an untrained method and gives back a *new* one that carries what
was learnt as a field. So a learnt method is applied, saved, compared and checked like any other.
"""

from .aims import Aim as Aim
from .aims import Ce as Ce
from .aims import Downstream as Downstream
from .aims import Kl as Kl
from .beside import Beside as Beside
from .board import Board as Board
from .boosting import boosted as boosted
from .boosting import learn_boost as learn_boost
from .by_latents import ByLatents as ByLatents
from .by_rows import ByRows as ByRows
from .codebooks import learn_codebooks as learn_codebooks
from .dictionaries import learn as learn
from .distilled import Distilled as Distilled
from .end_to_end import learn_through as learn_through
from .learner import Learner as Learner
from .learner import learner_of as learner_of
from .loop import Training as Training
from .loop import train as train
from .masks import Masks as Masks
from .masks import next_token as next_token
from .predicted import Predicted as Predicted
from .predicted import recalls as recalls
from .pupil import Lesson as Lesson
from .pupil import Pupil as Pupil
from .rate import Cosine as Cosine
from .rate import Flat as Flat
from .rate import Linear as Linear
from .rate import Rate as Rate
from .rate import Trapezoid as Trapezoid
from .source import Live as Live
from .source import Rows as Rows
from .source import Source as Source
from .source import Windows as Windows
from .source import activations as activations
from .stored import Stored as Stored
from .storing import store as store
from .together import Apart as Apart
from .together import Mutual as Mutual
from .together import Summed as Summed
from .together import Together as Together
from .tuned import Tuned as Tuned

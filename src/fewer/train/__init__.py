"""Learning: what a method cannot be told by a formula it is shown. The loop itself is still to come.

Dictionaries, routers, masks and thresholds are learnt here, by one loop (resume, mixed precision, torchrun / FSDP2).
A method stays a value all the same: a learner takes an untrained method and gives back a *new* one that carries what
was learnt as a field. So a learnt method is applied, saved, compared and checked like any other.
"""

from .learner import Learner as Learner

"""The entries of the queue, in the order in which they run."""

from studies.evidence.graph import QueueEntry
from studies.evidence.sarcoma import REAL_PATIENTS
from studies.evidence.transfer import TRANSFER
from studies.evidence.who_teaches import WHO_TEACHES

ENTRIES: tuple[QueueEntry, ...] = (WHO_TEACHES, REAL_PATIENTS, TRANSFER)

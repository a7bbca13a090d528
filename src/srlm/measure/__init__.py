"""Steps and probes -> records of plain floats: the one gate from tensors to numbers."""

from srlm.measure.drift import drift_record as drift_record
from srlm.measure.drift import length_record as length_record
from srlm.measure.drift import log_lengths as log_lengths
from srlm.measure.record import HeldOut as HeldOut
from srlm.measure.record import accuracy_record as accuracy_record
from srlm.measure.record import achieved_record as achieved_record
from srlm.measure.record import agreement_record as agreement_record
from srlm.measure.record import at_k_record as at_k_record
from srlm.measure.record import calibration_record as calibration_record
from srlm.measure.record import exact_update as exact_update
from srlm.measure.record import flips_record as flips_record
from srlm.measure.record import held_out_record as held_out_record
from srlm.measure.record import log10_kappa_upper as log10_kappa_upper
from srlm.measure.record import peak_memory_gb as peak_memory_gb
from srlm.measure.record import step_record as step_record
from srlm.measure.record import subset_sizes as subset_sizes
from srlm.measure.record import train_record as train_record
from srlm.measure.record import update_fidelity as update_fidelity

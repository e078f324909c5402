"""From a spec to result tables on disk: whole files or none, resumable at any moment."""

from poise.experiments.audit import AuditListener, run_audit
from poise.experiments.audit_spec import AuditSpec
from poise.experiments.costs import Costs
from poise.experiments.gate import Failure, Gate

__all__ = ["AuditListener", "AuditSpec", "Costs", "Failure", "Gate", "run_audit"]

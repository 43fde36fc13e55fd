"""PlanStudy: validate the study, expand it, write its PLANNED rows, hand the experiments to the Map."""

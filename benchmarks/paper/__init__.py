"""The paper's table anew: LightSecAgg beside SecAgg and SecAgg+, computation measured, network modelled."""

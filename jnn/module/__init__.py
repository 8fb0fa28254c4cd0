"""The stateful side: Module, Parameter, hooks, state_dict, containers and the twins of the pure layers."""

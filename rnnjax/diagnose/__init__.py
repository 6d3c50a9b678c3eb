"""Where the gradient goes: Jacobians, gradients by lag, Lyapunov exponents, a report, and their plots."""
